"""Compile the CUDA kernel with NVRTC: no GPU, no driver and no CUDA toolkit needed.

``python -m star_export.engines.plugins.nvrtc --architecture compute_80 topk_gather.ptx`` writes
the PTX to a file; CMakeLists.txt does that where it finds no nvcc.
"""

import argparse
import importlib
import re
from pathlib import Path
from typing import Any

from star_export.errors import PlatformError, SettingsError, StarExportError

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "topk_gather.cu"

#: The entry point in PTX and cubin.
KERNEL = "star_topk_gather"

#: PTX ISA of CUDA 13.0, which drivers of branch 580 and newer accept.
PTX_VERSION = (9, 0)

_INSTALL = "pip install 'star-export[tensorrt]'"


def compile_ptx(architecture: str, *, source: Path = SOURCE) -> bytes:
    """PTX of the kernel.

    A newer NVRTC stamps its PTX with a version that older drivers refuse, whatever the
    instructions in it. The kernel uses none that are newer than :data:`PTX_VERSION`, so that is
    what its PTX says.

    Args:
        architecture: Virtual architecture: ``compute_89`` for GPUs of compute capability 8.9 and
            newer, ``compute_80`` for hardware compatible engines.
        source: The ``.cu`` file.

    Returns:
        ASCII text, without a terminating zero.

    Raises:
        SettingsError: If ``architecture`` is not of the form ``compute_NN``.
        PlatformError: If NVRTC is missing, or refuses the architecture or the source.
    """
    if not re.fullmatch(r"compute_\d+[af]?", architecture):
        raise SettingsError(
            f"PTX needs a virtual architecture such as compute_80, found {architecture!r}; "
            "compute_NN is compute capability N.N"
        )
    return _limit_version(_compile(architecture, source, "PTX").rstrip(b"\0"))


def compile_cubin(architecture: str, *, source: Path = SOURCE) -> bytes:
    """Machine code of the kernel for exactly one architecture.

    Args:
        architecture: Real architecture, such as ``sm_89``.
        source: The ``.cu`` file.

    Returns:
        An ELF file.

    Raises:
        SettingsError: If ``architecture`` is not of the form ``sm_NN``.
        PlatformError: If NVRTC is missing, or refuses the architecture or the source.
    """
    if not re.fullmatch(r"sm_\d+[af]?", architecture):
        raise SettingsError(f"a cubin needs a real architecture such as sm_80, found {architecture!r}")
    return _compile(architecture, source, "CUBIN")


def launch_constant(name: str) -> int:
    """An integer of ``topk_gather.h``, such as ``STAR_BLOCK_THREADS``."""
    text = (FOLDER / "topk_gather.h").read_text()
    [value] = re.findall(rf"^#define {name} (\d+)$", text, re.MULTILINE)
    return int(value)


def _limit_version(ptx: bytes) -> bytes:
    def stamp(found: re.Match[bytes]) -> bytes:
        version = min((int(found[1]), int(found[2])), PTX_VERSION)
        return b".version %d.%d" % version

    limited, count = re.subn(rb"^\.version (\d+)\.(\d+)", stamp, ptx, count=1, flags=re.MULTILINE)
    if not count:
        raise PlatformError(f"NVRTC's PTX has no .version line, so no driver will take it; {_INSTALL}")
    return limited


def _compile(architecture: str, source: Path, product: str) -> bytes:
    nvrtc = _load()
    options = [f"--gpu-architecture={architecture}", "--std=c++17", f"--include-path={FOLDER}"]
    encoded = [option.encode() for option in options]
    program = _take(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if status:
            log = bytearray(_take(nvrtc.nvrtcGetProgramLogSize(program)))
            nvrtc.nvrtcGetProgramLog(program, log)
            raise PlatformError(_refusal(nvrtc, source.name, architecture, bytes(log)))
        code = bytearray(_take(getattr(nvrtc, f"nvrtcGet{product}Size")(program)))
        _take(getattr(nvrtc, f"nvrtcGet{product}")(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _refusal(nvrtc: Any, source: str, architecture: str, log: bytes) -> str:
    version = ".".join(map(str, nvrtc.nvrtcVersion()[1:]))
    lines = [line.strip() for line in log.rstrip(b"\0").decode(errors="replace").splitlines()]
    reason = "; ".join(line for line in lines if line)
    return f"NVRTC {version} cannot compile {source} for {architecture}: {reason}"


def _take(result: tuple[Any, ...]) -> Any:
    """The value of a call that returns ``(status, value)``."""
    if result[0]:
        raise PlatformError(f"NVRTC failed with {result[0].name}; {_INSTALL} adds a matching one")
    return result[1] if len(result) > 1 else None


def _load() -> Any:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()  # the bindings look for the library at the first call
    except (ImportError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise PlatformError(f"the CUDA kernel needs NVRTC ({lines[0]}); {_INSTALL}") from None
    return nvrtc


def main(arguments: list[str] | None = None) -> int:
    """Write the kernel's PTX to a file; 0 if that worked, else 1 and one line of reason."""
    argument_parser = argparse.ArgumentParser(description=main.__doc__)
    argument_parser.add_argument(
        "--architecture", default="compute_80", help="virtual architecture, compute_NN"
    )
    argument_parser.add_argument("output", type=Path)
    options = argument_parser.parse_args(arguments)
    try:
        options.output.write_bytes(compile_ptx(options.architecture))
    except StarExportError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
