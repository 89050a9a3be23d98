"""The kernel under ThreadSanitizer and AddressSanitizer: every barrier is there, and every one is needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from star_export.engines.plugins.nvrtc import FOLDER, SOURCE

HERE = Path(__file__).parent
BARRIER = "__syncthreads();"
BARRIERS = SOURCE.read_text().count(BARRIER)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def run(folder: Path, sanitizer: str, source: Path = SOURCE) -> subprocess.CompletedProcess[str]:
    program = folder / "sanitized"
    command = ["g++", "-std=c++20", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", f"-I{FOLDER}"]
    command += ["-fno-sanitize-recover=all", "-Wno-unknown-pragmas", "-DSTAR_BLOCK_THREADS=8"]
    command += ["-include", str(HERE.parent / "cuda_on_cpu.h"), "-x", "c++", str(source)]
    command += [str(HERE / name) for name in ("topk_gather_on_cpu.cpp", "sanitized.cpp")]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
    if "cannot find" in done.stderr:
        pytest.skip(f"g++ has no -fsanitize={sanitizer} here")
    assert done.returncode == 0, done.stderr
    options = {"TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, env=options)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address randomisation is too strong for the installed ThreadSanitizer")
    return done


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_clean(sanitizer: str, tmp_path: Path) -> None:
    done = run(tmp_path, sanitizer)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dropped", range(BARRIERS))
def test_every_barrier_is_needed(dropped: int, tmp_path: Path) -> None:
    parts = SOURCE.read_text().split(BARRIER)
    parts[dropped : dropped + 2] = [parts[dropped] + parts[dropped + 1]]
    source = tmp_path / "topk_gather.cu"
    source.write_text(BARRIER.join(parts))
    done = run(tmp_path, "thread", source)
    assert done.returncode != 0
    assert "ThreadSanitizer" in done.stderr  # a race, or a crash from what the race left behind
