"""``make bench-triton``: where decode should run, in the process of the front door or in a model of its own.

A model of another backend keeps nothing between two requests, so the KV caches would travel to it and
back at every step. This measures, inside a real tritonserver and in turns, a whole decode step in place
and only that journey: the same caches to a model that returns them untouched. It prints their ratio.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from star_export.answer.pipeline import load
from star_export.serving.triton.tritonserver import find_server, wait_until_ready

PORT = 18810
ROUNDS = 20

_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 0
input {{ name: "past" data_type: TYPE_FP32 dims: [ -1 ] }}
output {{ name: "present" data_type: TYPE_FP32 dims: [ -1 ] }}
parameters {{ key: "bundle" value: {{ string_value: {bundle} }} }}
parameters {{ key: "slots" value: {{ string_value: "{slots}" }} }}
"""

_MODEL_PY = """import os, site, sys
sys.path[:0] = [{here!r}, *os.environ["PYTHONPATH"].split(os.pathsep)]
for path in list(sys.path):
    site.addsitedir(path)
from bench_triton import {model} as TritonPythonModel
"""


class Elsewhere:
    """A model that gives back what it gets."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        import triton_python_backend_utils as pb  # only inside Triton

        tensors = [pb.get_input_tensor_by_name(request, "past").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("present", tensor)]) for tensor in tensors]


class Here:
    """A front door that measures both ways; the answer is milliseconds of each, in turns."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle and allocate its caches."""
        given = {k: v["string_value"] for k, v in json.loads(args["model_config"])["parameters"].items()}
        self._slots = int(given["slots"])
        self._pipeline = load(given["bundle"])
        self._caches = self._pipeline.session.allocate_caches(self._slots)
        self._bytes = np.zeros(self._slots * self._pipeline.spec.slot_bytes // 4, np.float32)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Measure."""
        import triton_python_backend_utils as pb  # only inside Triton

        times = [time.perf_counter()]
        for _ in range(ROUNDS):
            self._step()
            times.append(time.perf_counter())
            self._journey(pb)
            times.append(time.perf_counter())
        measured = (1000 * np.diff(times)).astype(np.float32)
        return [pb.InferenceResponse([pb.Tensor("present", measured)]) for _ in requests]

    def _step(self) -> None:
        spec = self._pipeline.spec
        lengths = np.array([[length] * self._slots for length in spec.lengths(1, spec.image_tokens)])
        self._pipeline.steps.decode_batch(self._caches, np.ones_like(lengths[0]), lengths).argmax()

    def _journey(self, pb: Any) -> None:
        past = pb.Tensor("past", self._bytes)
        request = pb.InferenceRequest(
            model_name="elsewhere", inputs=[past], requested_output_names=["present"]
        )
        response = request.exec()
        assert not response.has_error(), response.error()
        assert response.output_tensors()[0].as_numpy().shape == self._bytes.shape


def main() -> None:
    """Start a server with both models, ask once, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--slots", type=int, default=16)
    args = parser.parse_args()
    if not args.bundle.is_dir():
        parser.error(f"{args.bundle} does not exist; `make load` builds it")
    bundle, here = json.dumps(str(args.bundle.resolve())), str(Path(__file__).resolve().parent)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("here", "elsewhere"):
            version = Path(folder) / name / "1"
            version.mkdir(parents=True)
            config = _CONFIG.format(name=name, bundle=bundle, slots=args.slots)
            (version.parent / "config.pbtxt").write_text(config)
            (version / "model.py").write_text(_MODEL_PY.format(here=here, model=name.capitalize()))
        times = _ask(Path(folder))
    step, journey = np.median(times[0::2]), np.median(times[1::2])
    print(f"decode step of {args.slots} sequences, caches in place: {step:.1f} ms")
    print(f"their caches to another model and back, no decode: {journey:.1f} ms")
    print(f"journey / step: {journey / step:.1f}x")


def _ask(repository: Path) -> list[float]:
    ports = [f"--http-port={PORT}", f"--grpc-port={PORT + 1}", f"--metrics-port={PORT + 2}"]
    with find_server() as server:
        command = server.command(repository, ports)
        process = subprocess.Popen(command, env={**os.environ, **server.environment}, stdout=sys.stderr)
        try:
            wait_until_ready(process, f"localhost:{PORT}")
            url = f"http://localhost:{PORT}/v2/models/here/generate"
            body = json.dumps({"past": [0.0]}).encode()
            with urllib.request.urlopen(urllib.request.Request(url, body)) as response:
                return json.load(response)["present"]  # type: ignore[no-any-return]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


if __name__ == "__main__":
    main()
