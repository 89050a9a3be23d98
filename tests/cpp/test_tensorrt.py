"""The C++ TensorRT session on a fake GPU: its answers are those of ONNX Runtime, bit for bit."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from star_export.bundle import Bundle

BUILD = Path(os.environ.get("STAR_EXPORT_CPP", Path(__file__).parents[2] / "build/cpp"))
SHAPES = Path(__file__).parents[2] / "docs/shapes.png"
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


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_star_run(fake_engine_bundle: Callable[..., Bundle], backend: str) -> None:
    """The program from its command line on: what it prints is what it prints with ONNX Runtime."""
    program = BUILD / f"star_run_{backend.replace('-', '_')}"
    if not program.exists():
        pytest.skip(f"no {program}: build engines/cpp, or set STAR_EXPORT_CPP to its build folder")
    bundle = fake_engine_bundle(backend, "mha", "sm89", dtype="float32", capacities=(40, 72))
    fake = str(BUILD / f"libfake_{backend.replace('-', '_')}.so")
    environment = {
        **os.environ,
        **dict.fromkeys(("STAR_TENSORRT", "STAR_CUDART", "STAR_NVRTC"), fake),
        "STAR_ONNXRUNTIME": str(LIBRARY),
        "STAR_FAKE_VERSION": bundle.manifest["engines"][backend]["version"],
    }

    def ask(name: str, *settings: str) -> tuple[dict[str, Any], str]:
        command = [program, bundle.folder, "-i", SHAPES, "-p", "What is in it?", "--backend", name, *settings]
        texts = [
            subprocess.run(
                [*command, *form], env=environment, capture_output=True, text=True, check=True
            ).stdout
            for form in (["--json"], [])
        ]
        answer = json.loads(texts[0])
        del answer["timings_ms"]
        return answer, texts[1]

    for settings in ((), ("--keep", "5"), ("--seed", "3", "--temperature", "2")):
        answer, streamed = ask(backend, *settings)
        assert (answer, streamed) == ask("onnxruntime", *settings)
        assert streamed == answer["text"] + "\n"
