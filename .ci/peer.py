"""One side of `make bench-peers`, in a process of its own: ``peer.py KIND FOLDER REQUEST``.

Prints one line of JSON: milliseconds to the first token and of each later one, and bytes of memory;
of ``ceilings``, what the machine can do at most. What cannot be measured ends with the reason.
"""

import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from star_export.engines import Runtime
from star_export.engines.backends import ONNXRUNTIME
from star_export.measure.sides import BundleSide
from star_export.measure.workload import Sample, Side, Workload
from star_export.memory import resident_bytes

TEXT = "USER: <image>\nWhat color is the square? ASSISTANT:"
SIZE = 768  # of the matrices of a ceiling


class OpenVinoSide(Side):
    """OpenVINO GenAI, by its own account of a request; its cache of earlier prompts is off."""

    def __init__(self, folder: Path, threads: int, properties: Mapping[str, Any]) -> None:
        import openvino_genai

        self.genai = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads, **properties}
        self.pipeline = openvino_genai.VLMPipeline(folder, "CPU", scheduler_config=scheduler, **properties)

    def measure(self, workload: Workload) -> Sample:
        """Answer once and take the time."""
        import openvino

        start = time.perf_counter()
        picture = openvino.Tensor(np.asarray(Image.open(workload.picture).convert("RGB"))[None])
        read = 1000 * (time.perf_counter() - start)
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = workload.new_tokens + 1, True
        config.do_sample = config.apply_chat_template = False
        times = self.pipeline.generate(workload.text, images=[picture], generation_config=config).perf_metrics
        assert times.get_num_generated_tokens() == workload.new_tokens + 1
        vision, first = times.get_prepare_embeddings_duration().mean, times.get_ttft().mean
        return Sample(vision, first - vision, times.get_tpot().mean, read + first)

    def close(self) -> None:
        """Let go of the model."""
        self.pipeline = None


def open_side(kind: str, folder: Path, threads: int, given: Mapping[str, Any]) -> Side:
    """Load one system: ``bundle``, ``transformers`` or ``openvino``."""
    if kind == "bundle":
        return BundleSide(folder, _workload(Path(), threads, 1, **given), keep=None)
    if kind == "openvino":
        return OpenVinoSide(folder, threads, given)
    from star_export.measure.huggingface import HuggingFaceSide

    return HuggingFaceSide(folder, attention="sdpa", threads=threads, device="cpu", dtype=given["dtype"])


def measure(kind: str, folder: Path, request: Mapping[str, Any]) -> dict[str, float | None]:
    """Medians of one side's requests, after one to warm up; milliseconds and bytes."""
    workload = _workload(Path(request["picture"]), request["threads"], request["new_tokens"])
    with open_side(kind, folder, request["threads"], request["given"]) as side:
        side.measure(replace(workload, new_tokens=2))
        samples = [side.measure(workload) for _ in range(request["repeats"])]
        resident = resident_bytes("now")
    medians = {
        name: statistics.median(getattr(sample, name) for sample in samples)
        for name in ("vision", "prefill", "decode", "ttft")
    }
    return medians | {"resident": resident, "peak": resident_bytes("peak")}


def _workload(picture: Path, threads: int, new_tokens: int, backend: str = ONNXRUNTIME) -> Workload:
    return Workload(
        bundle=Path(), baseline=Path(), checkpoint=Path(), picture=picture, text=TEXT, keep=None,
        others={}, asked=None, new_tokens=new_tokens, runtime=Runtime(backend=backend, threads=threads),
    )  # fmt: skip


def ceilings(threads: int) -> dict[str, float]:
    """Billions of operations a second of matrix products, and gigabytes read a second; the best of five.

    In torch; int8 in ONNX Runtime, whose product of few bits is what quantised bundles run.
    """
    import torch

    torch.set_num_threads(threads)
    words = 1 << 27
    found = {"read GB/s": 4 * words / _best(torch.ones(words).sum) / 1e9}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(SIZE, SIZE, dtype=dtype)
        seconds = _best(lambda matrix=matrix: matrix @ matrix)
        found[f"{str(dtype).removeprefix('torch.')} Gop/s"] = 2 * SIZE**3 / seconds / 1e9
    found["int8 Gop/s"] = 2 * SIZE**3 / _best(_int8_product(threads)) / 1e9
    return found


def _int8_product(threads: int) -> Callable[[], object]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((SIZE, SIZE), np.int8), "b")
    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    a = helper.make_tensor_value_info("a", TensorProto.UINT8, [SIZE, SIZE])
    c = helper.make_tensor_value_info("c", TensorProto.INT32, [SIZE, SIZE])
    graph = helper.make_graph([node], "product", [a], [c], [weight])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    given = {"a": np.ones((SIZE, SIZE), np.uint8)}
    return lambda: session.run(None, given)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of five."""
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def exported_by_transformers(folder: Path, picture: Path) -> str:
    """The parts that transformers' own ONNX exporter makes of a checkpoint, and why none is measured."""
    import torch
    from transformers.exporters.utils import decompose_for_generation

    from star_export.preprocessing import load_image
    from star_export.preprocessing.processor import read_processor
    from star_export.validation.expected import processor_inputs
    from star_export.validation.reference import load_model

    inputs = processor_inputs(read_processor(folder), [load_image(picture)], TEXT)
    model = load_model(folder, dtype=torch.float32, attention="sdpa")
    parts = decompose_for_generation(model, dict(inputs))
    seeing = [name for name, (_, given) in parts.items() if "pixel_values" in given]
    verdict = f"{', '.join(seeing)} takes pictures; no runner here" if seeing else "no part takes a picture"
    return f"its parts are {', '.join(parts)}: {verdict}"


def converted_by_llama_cpp(folder: Path, scratch: Path) -> str:
    """What llama.cpp's converter, in the source package of llama-cpp-python, says of a vision tower."""
    scratch.mkdir(parents=True, exist_ok=True)
    if not (found := list(scratch.glob("*.tar.gz"))):
        download = (
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            "llama-cpp-python",
        )
        subprocess.run([sys.executable, "-m", *download, "-d", str(scratch)], check=True, capture_output=True)
        found = list(scratch.glob("*.tar.gz"))
    with tarfile.open(found[0]) as archive:
        archive.extractall(scratch, filter="data")
    source = next(scratch.glob("*/vendor/llama.cpp"))
    convert = [sys.executable, "convert_hf_to_gguf.py", str(folder.resolve()), "--mmproj"]
    environment = os.environ | {"PYTHONPATH": "gguf-py"}
    output = ["--outfile", str(scratch.resolve() / "vision.gguf")]
    done = subprocess.run([*convert, *output], cwd=source, env=environment, capture_output=True, text=True)
    if done.returncode:
        return f"its converter ends with {done.stderr.strip().splitlines()[-1]}"
    return "its converter takes the vision tower; no runner here"


def main(kind: str, folder: Path, request: Mapping[str, Any]) -> None:
    """Do what one call asks for, and print it."""
    if kind == "transformers-onnx":
        sys.exit(exported_by_transformers(folder, Path(request["picture"])))
    if kind == "llama.cpp":
        sys.exit(converted_by_llama_cpp(folder, Path(request["given"]["scratch"])))
    record = ceilings(request["threads"]) if kind == "ceilings" else measure(kind, folder, request)
    print(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
