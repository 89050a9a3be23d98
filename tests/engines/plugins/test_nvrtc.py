"""NVRTC makes PTX that drivers of CUDA 13.0 accept, and machine code without spills."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from star_export.engines.plugins import nvrtc
from star_export.errors import PlatformError, SettingsError

pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")

CAPABILITIES = (80, 86, 89, 90, 100, 120)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_ptx(capability: int) -> None:
    ptx = nvrtc.compile_ptx(f"compute_{capability}").decode("ascii")
    [version] = re.findall(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)
    assert tuple(map(int, version)) <= nvrtc.PTX_VERSION
    assert re.search(rf"^\.target sm_{capability}$", ptx, re.MULTILINE)
    [entry] = re.findall(r"\.visible \.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
    assert entry[0] == nvrtc.KERNEL
    types = re.findall(r"\.param \.(\w+)", entry[1])
    assert types == ["u64", "u64", "u64", "u32", "u32", "u32", "u64", "u64"]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_machine_code(capability: int) -> None:
    cubin = nvrtc.compile_cubin(f"sm_{capability}")
    assert cubin.startswith(b"\x7fELF")
    assert nvrtc.KERNEL.encode() in cubin


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="ptxas is not on the PATH")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_spills(capability: int, tmp_path: Path) -> None:
    """The PTX of the oldest architecture, on every newer GPU: what hardware compatible engines hold."""
    ptx = tmp_path / "kernel.ptx"
    ptx.write_bytes(nvrtc.compile_ptx("compute_80"))
    command = ["ptxas", "-v", "--gpu-name", f"sm_{capability}", str(ptx), "-o", str(tmp_path / "cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in done.stderr


def test_a_newer_version_is_lowered_an_older_one_stays() -> None:
    assert nvrtc._limit_version(b"//\n.version 9.5\n.target") == b"//\n.version 9.0\n.target"
    assert nvrtc._limit_version(b"//\n.version 8.7\n.target") == b"//\n.version 8.7\n.target"


@pytest.mark.parametrize("architecture", ["sm_89", "89", "compute_", "compute_89 -G"])
def test_refuses_malformed_architectures(architecture: str) -> None:
    with pytest.raises(SettingsError, match="virtual architecture such as compute_80"):
        nvrtc.compile_ptx(architecture)


def test_the_log_of_a_failure_is_one_line(tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text("int x = ;\nint y = unknown;\n")
    with pytest.raises(
        PlatformError, match=r"cannot compile broken\.cu for compute_80: .*line|error"
    ) as error:
        nvrtc.compile_ptx("compute_80", source=source)
    assert "\n" not in str(error.value)
    assert "unknown" in str(error.value)


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(PlatformError, match="compute_11"):
        nvrtc.compile_ptx("compute_11")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "kernel.ptx"
    assert nvrtc.main(["--architecture", "compute_90", str(output)]) == 0
    assert b".target sm_90" in output.read_bytes()
    assert nvrtc.main(["--architecture", "compute_11", str(output)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1
