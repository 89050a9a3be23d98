"""Which parts of star-export work on this machine, and what adds the missing ones."""

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from star_export.engines import BACKENDS
from star_export.engines.parts import Part, gpu, packages
from star_export.engines.tensorrt.bindings import PRODUCTS, TENSORRT

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
_COMPILER = ("cuda-bindings", "nvidia-cuda-nvrtc")


def examine() -> list[Part]:
    """Look at every part; imports packages, changes nothing."""
    return [
        Part("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {_machine()}"),
        packages("run bundles", RUNTIME, "pip install star-export"),
        packages("build and check", EXPORT, "pip install 'star-export[export]'"),
        gpu(),
        *(part for backend in BACKENDS.values() for part in backend.examine()),
        packages("compile the plugin kernel", _COMPILER, PRODUCTS[TENSORRT].install),
        _plugin_library(),
        packages("serve", ("starlette", "uvicorn"), "pip install 'star-export[serve]'"),
        packages("batch of Parquet files", ("pyarrow",), "pip install 'star-export[batch]'"),
        packages("batch on Ray", ("ray",), "pip install 'star-export[ray]'"),
        packages("answers as JSON of a schema", ("llguidance",), "pip install 'star-export[schema]'"),
        packages("calibrate", ("llmcompressor",), "pip install 'star-export[calibrate]'"),
        packages("check --polygraphy", ("polygraphy",), "pip install 'star-export[polygraphy]'"),
    ]


def to_dict(parts: Sequence[Part]) -> dict[str, Any]:
    """Plain JSON values."""
    return {"parts": [asdict(part) for part in parts]}


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"


def _plugin_library() -> Part:
    """The C++ library needs a compiler and TensorRT's headers, wherever they are."""
    name, remedy = "compile the plugin library", "install CMake and a C++ compiler; docs/kernels.md"
    tools = {tool: shutil.which(tool) for tool in ("cmake", "c++")}
    if missing := [tool for tool, path in tools.items() if path is None]:
        return Part(name, False, f"missing: {', '.join(missing)}", remedy)
    return Part(name, True, f"{', '.join(map(str, tools.values()))}; give TensorRT with -DTENSORRT_ROOT")
