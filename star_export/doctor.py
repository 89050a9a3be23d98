"""Which parts of star-export work on this machine, and what adds the missing ones."""

import importlib
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

RUNTIME = ("numpy", "onnxruntime", "tokenizers", "pillow", "jinja2", "rich", "typer")
EXPORT = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "safetensors", "huggingface_hub")
_MODULES = {"pillow": "PIL", "onnx-ir": "onnx_ir"}


@dataclass(frozen=True)
class Part:
    """One ability and whether this machine has it.

    Attributes:
        name: What it is for.
        works: Whether it can be used now.
        found: Versions and devices.
        remedy: The command that adds it; empty when it works.
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
        return Part(name, False, str(error), "pip install onnxruntime")
    providers = [p for p in ort.get_available_providers() if p == "CPUExecutionProvider"]
    major, minor = (int(number) for number in ort.__version__.split(".")[:2])
    works = bool(providers) and (major, minor) >= (1, 24)
    remedy = "" if works else "pip install 'onnxruntime>=1.24'"
    return Part(name, works, f"{ort.__version__}: {', '.join(providers)}", remedy)
