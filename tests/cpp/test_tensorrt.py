"""The C++ TensorRT session on a fake GPU: its answers are those of ONNX Runtime, bit for bit."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from star_export.bundle import Bundle

BUILD = Path(os.environ.get("STAR_EXPORT_CPP", Path(__file__).parents[2] / "build/cpp"))
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))


@pytest.mark.parametrize(
    ("backend", "preset", "kind"),
    [
        ("tensorrt", "mha", {"dtype": "float32", "capacities": (40, 72)}),
        ("tensorrt", "mha", {"dtype": "float32", "weights": "baked"}),
        ("tensorrt", "gqa", {}),
        ("tensorrt", "mha", {"prune": False}),
        ("tensorrt", "mha", {"quantize": "int8"}),
        ("tensorrt-rtx", "mha", {"dtype": "float32", "capacities": (40, 72)}),
    ],
    ids=["float32", "baked", "float16", "unpruned", "int8", "rtx"],
)
def test_tensorrt_session(
    fake_engine_bundle: Callable[..., Bundle], backend: str, preset: str, kind: dict[str, Any]
) -> None:
    program = BUILD / f"star_{backend.replace('-', '_')}_tests"
    if not program.exists():
        pytest.skip(f"no {program}: build engines/cpp, or set STAR_EXPORT_CPP to its build folder")
    folder = fake_engine_bundle(backend, preset, "sm89", **kind).folder
    environment = {**os.environ, "STAR_FAKE_BUNDLE": str(folder), "STAR_ONNXRUNTIME": str(LIBRARY)}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
