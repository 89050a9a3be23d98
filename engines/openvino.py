"""The OpenVINO backend: vision and prefill in OpenVINO on the CPU, decode in ONNX Runtime beside it.

OpenVINO multiplies in bfloat16 where the machine can, and weights in few bits by activations in 8 bits,
both of which ONNX Runtime lacks on x86 or does more slowly for many tokens at once; for one token it reads
weights in few bits more quickly (`make bench-peers`). KV caches are ONNX Runtime's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from star_export.bundle import Bundle
from star_export.contract import DECODE, PREFILL, VISION
from star_export.engines.onnxruntime import (
    PREPACKED_FOR_BATCHES,
    OnnxRuntimeCaches,
    OnnxRuntimeSession,
    best_of_rows,
)
from star_export.engines.openvino_graphs import read_graph
from star_export.engines.session import Caches, DeviceArray, HostArray, Int64, Tensor, Wrapper, refuse_closed
from star_export.errors import BundleError

#: Graphs that OpenVINO runs.
COMPILED = (VISION, PREFILL)


def describe() -> str:
    """The version, and what it multiplies in on this machine."""
    kinds = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return f"{ov.__version__.split('-')[0]}: CPU, {'bfloat16' if 'BF16' in kinds else 'float32'}"


@dataclass(frozen=True)
class OpenVinoArray:
    """A tensor in OpenVINO's memory, valid until the graph that gave it runs again."""

    values: HostArray

    def numpy(self) -> HostArray:
        """Copy."""
        return self.values.copy()

    def argmax(self) -> Int64:
        """Index of the largest of each row, or -1, without copying the rows."""
        return best_of_rows(self.values)


class OpenVinoSession(Wrapper):
    """The three graphs of a bundle, two of them in OpenVINO.

    Args:
        bundle: An opened bundle.
        threads: CPU threads; all cores by default.
        exact: Compute in float32, and multiply quantised weights by activations as they are.
        batches: See :class:`star_export.engines.backends.Runtime`.

    Raises:
        BundleError: If OpenVINO cannot load a graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        exact: bool = False,
        batches: bool = False,
    ) -> None:
        prepacked = PREPACKED_FOR_BATCHES if batches else ()
        super().__init__(
            OnnxRuntimeSession(bundle, threads=threads, exact=exact, prepacked=prepacked, graphs=(DECODE,))
        )
        self.bundle = bundle
        properties = _properties(bundle, threads, exact=exact)
        self._requests = {graph: self._compile(graph, properties) for graph in COMPILED}

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph; see :meth:`star_export.engines.session.Session.run`."""
        if graph not in COMPILED:
            return self.session.run(graph, feeds, caches)
        refuse_closed(closed=not self._requests)
        request = self._requests[graph]
        arrays = {name: _host_view(tensor) for name, tensor in feeds.items()}
        for name, array in arrays.items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        try:
            request.infer()
        except RuntimeError as error:
            raise BundleError(
                f"OpenVINO {ov.__version__} cannot run {self.bundle.graph_path(graph)}: {error}"
            ) from error
        if caches is not None:
            assert isinstance(caches, OnnxRuntimeCaches)
            for present, past in self.contract[graph].aliases.items():
                written = request.get_tensor(present).data
                caches.host(past)[:, :, : written.shape[2]] = written
        names = (tensor.name for tensor in self.contract[graph].plain_outputs)
        return {name: OpenVinoArray(request.get_tensor(name).data) for name in names}

    def close(self) -> None:
        """Let go of the graphs and of all caches."""
        self._requests.clear()
        self.session.close()

    def _compile(self, graph: str, properties: dict[str, Any]) -> ov.InferRequest:
        try:
            model = read_graph(self.bundle, graph)
            return ov.Core().compile_model(model, "CPU", properties).create_infer_request()
        except RuntimeError as error:
            raise BundleError(
                f"OpenVINO {ov.__version__} cannot load {self.bundle.graph_path(graph)}: {error}"
            ) from error


def _host_view(tensor: Tensor) -> HostArray:
    """A tensor in memory that OpenVINO can read, without a copy if it is there."""
    return np.ascontiguousarray(tensor.values if isinstance(tensor, OpenVinoArray) else tensor)


def _properties(bundle: Bundle, threads: int | None, *, exact: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    if threads is not None:
        found["INFERENCE_NUM_THREADS"] = threads
    if exact:
        return found | {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    if (quantization := bundle.spec.quantization) is not None:
        # Activations are rounded with the blocks of the weights; OpenVINO's own choice is smaller.
        found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = quantization.block
    return found
