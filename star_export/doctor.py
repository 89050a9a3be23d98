"""Which parts of star-export work on this machine, and what adds the missing ones."""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from star_export.engines.tensorrt.bindings import BACKENDS, EXTRA, load_bindings
from star_export.engines.tensorrt.cuda import require_device
from star_export.engines.tensorrt.facts import RTX_TARGETS
from star_export.errors import PlatformError

RUNTIME = ("msgspec", "numpy", "onnxruntime", "tokenizers", "pillow", "jinja2", "rich", "typer")
EXPORT = (
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "safetensors",
    "sentencepiece",
    "huggingface_hub",
)
_MODULES = {
    "pillow": "PIL",
    "onnx-ir": "onnx_ir",
    "cuda-bindings": "cuda.bindings.nvrtc",
    "nvidia-cuda-nvrtc": "cuda.bindings.nvrtc",
}
_EXTRA = "pip install 'star-export[{}]'"


@dataclass(frozen=True)
class Part:
    """One ability and whether this machine has it.

    Attributes:
        name: What it is for.
        works: Whether it can be used now.
        found: Versions and devices, or what is missing.
        remedy: What adds it, most often a command; empty when it works.
    """

    name: str
    works: bool
    found: str
    remedy: str


def examine() -> list[Part]:
    """Look at every part; imports packages, changes nothing."""
    return [
        Part("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {_machine()}", ""),
        _packages("run bundles", RUNTIME, "pip install star-export"),
        _packages("build and check", EXPORT, "pip install 'star-export[export]'"),
        _onnxruntime(),
        _gpu(),
        *(part for backend in BACKENDS for part in _tensorrt(backend)),
        _packages(
            "compile the plugin kernel", ("cuda-bindings", "nvidia-cuda-nvrtc"), _EXTRA.format("tensorrt")
        ),
        _plugin_library(),
        _packages("check --polygraphy", ("polygraphy",), _EXTRA.format("polygraphy")),
    ]


def to_dict(parts: Sequence[Part]) -> dict[str, Any]:
    """Plain JSON values."""
    return {"parts": [asdict(part) for part in parts]}


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"


def _packages(name: str, packages: Sequence[str], remedy: str) -> Part:
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
            importlib.import_module(_MODULES.get(package, package))
        except (PackageNotFoundError, ImportError, OSError) as error:
            missing.append(f"{package} ({type(error).__name__})")
    if missing:
        return Part(name, False, f"missing: {', '.join(missing)}", remedy)
    return Part(name, True, ", ".join(found), "")


def _onnxruntime() -> Part:
    """Opset 24 on the CPU came with ONNX Runtime 1.24."""
    name = "backend onnxruntime"
    try:
        import onnxruntime as ort
    except ImportError as error:
        return _missing(name, error, "pip install onnxruntime")
    providers = [p for p in ort.get_available_providers() if p == "CPUExecutionProvider"]
    major, minor = (int(number) for number in ort.__version__.split(".")[:2])
    works = bool(providers) and (major, minor) >= (1, 24)
    remedy = "" if works else "pip install 'onnxruntime>=1.24'"
    return Part(name, works, f"{ort.__version__}: {', '.join(providers)}", remedy)


def _gpu() -> Part:
    try:
        device = require_device()
    except PlatformError as error:
        return _missing("GPU", error)
    memory = f"{device.free_memory / 1e9:.1f} of {device.total_memory / 1e9:.1f} GB free"
    capability = "sm{}{}".format(*device.capability)
    return Part("GPU", True, f"{device.name}, {capability}, driver for CUDA {device.driver}, {memory}", "")


def _tensorrt(backend: str) -> list[Part]:
    """Building and running engines: TensorRT needs a GPU for both, TensorRT-RTX for running only."""
    build, run = f"build {backend} engines", f"backend {backend}"
    try:
        bindings = load_bindings(backend)
        importlib.import_module("onnx")
    except (PlatformError, ImportError) as error:
        return [_missing(name, error, _EXTRA.format(EXTRA[backend])) for name in (build, run)]
    gpu = _gpu()
    found = f"{bindings.version}{'' if gpu.works else ', which needs a GPU'}"
    runs = Part(run, gpu.works, found, "")
    if bindings.is_rtx:
        targets = ", ".join(RTX_TARGETS)
        return [Part(build, True, f"{bindings.version}, without a GPU, for {targets}", ""), runs]
    return [Part(build, gpu.works, found, ""), runs]


def _missing(name: str, error: Exception, remedy: str = "") -> Part:
    """A part that an error speaks of: what is wrong, then after a semicolon what to do."""
    found, _, advice = str(error).partition("; ")
    return Part(name, False, found, remedy or advice)


def _plugin_library() -> Part:
    """The C++ library needs a compiler and TensorRT's headers, wherever they are."""
    name, remedy = "compile the plugin library", "install CMake and a C++ compiler; docs/kernels.md"
    tools = {tool: shutil.which(tool) for tool in ("cmake", "c++")}
    if missing := [tool for tool, path in tools.items() if path is None]:
        return Part(name, False, f"missing: {', '.join(missing)}", remedy)
    return Part(name, True, f"{', '.join(map(str, tools.values()))}; give TensorRT with -DTENSORRT_ROOT", "")
