"""Abilities of this machine, as ``star-export doctor`` lists them."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from star_export.engines.tensorrt.cuda import require_device
from star_export.errors import PlatformError, marked, spelled

_MODULES = {
    "pillow": "PIL",
    "onnx-ir": "onnx_ir",
    "cuda-bindings": "cuda.bindings.nvrtc",
    "nvidia-cuda-nvrtc": "cuda.bindings.nvrtc",
}


@dataclass(frozen=True)
class Part:
    """One ability and whether this machine has it; options in its texts are marked.

    Attributes:
        name: What it is for.
        works: Whether it can be used now.
        found: Versions and devices, or what is missing.
        remedy: What adds it, most often a command; empty when it works.
    """

    name: str
    works: bool
    found: str
    remedy: str = ""

    def spelled(self, spell: Callable[[str], str]) -> "Part":
        """The same with its options as ``spell`` has them; see :func:`star_export.errors.spelled`."""
        return replace(self, found=spelled(self.found, spell), remedy=spelled(self.remedy, spell))


def missing(name: str, error: Exception, remedy: str = "") -> Part:
    """A part that an error speaks of: what is wrong, then after a semicolon what to do."""
    found, _, advice = marked(error).partition("; ")
    return Part(name, False, found, remedy or advice)


def packages(name: str, wanted: Sequence[str], remedy: str) -> Part:
    """A part that is there when all of its packages can be imported."""
    found, absent = [], []
    for package in wanted:
        try:
            found.append(f"{package} {version(package)}")
            importlib.import_module(_MODULES.get(package, package))
        except (PackageNotFoundError, ImportError, OSError) as error:
            absent.append(f"{package} ({type(error).__name__})")
    if absent:
        return Part(name, False, f"missing: {', '.join(absent)}", remedy)
    return Part(name, True, ", ".join(found))


def gpu() -> Part:
    """The GPU that sessions use."""
    try:
        device = require_device()
    except PlatformError as error:
        return missing("GPU", error)
    memory = f"{device.free_memory / 1e9:.1f} of {device.total_memory / 1e9:.1f} GB free"
    capability = "sm{}{}".format(*device.capability)
    return Part("GPU", True, f"{device.name}, {capability}, driver for CUDA {device.driver}, {memory}")
