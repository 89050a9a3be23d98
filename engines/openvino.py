"""The OpenVINO backend: a bundle's graphs in OpenVINO on the CPU.

It multiplies in bfloat16 where the machine can, and weights in few bits by activations in 8 bits, both of
which ONNX Runtime lacks on x86 or does more slowly for many tokens at once. For one token ONNX Runtime reads
weights in few bits more quickly, and decodes those bundles. Caches are ONNX Runtime's in any case, in host
memory: OpenVINO reads them where they lie, and what it gives for them is written behind the rest. Where it
multiplies in bfloat16 and decodes itself they are bfloat16.
"""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from star_export.bundle import Bundle
from star_export.contract import DECODE, GRAPHS, group_names, lengths_names, past_bias, past_names
from star_export.engines.mapped import letting_go, mapped_bytes
from star_export.engines.onnxruntime import (
    PREPACKED_FOR_BATCHES,
    OnnxRuntimeCaches,
    OnnxRuntimeSession,
    best_of_rows,
)
from star_export.engines.openvino_graphs import read_graph
from star_export.engines.session import Caches, DeviceArray, HostArray, Int64, Tensor, Wrapper, refuse_closed
from star_export.errors import BundleError
from star_export.specs import ExportSpec


def describe() -> str:
    """The version, and what it multiplies in on this machine."""
    return f"{ov.__version__.split('-')[0]}: CPU, {'bfloat16' if _has_bfloat16() else 'float32'}"


@dataclass(frozen=True)
class OpenVinoArray:
    """A tensor in OpenVINO's memory, valid until the graph that gave it runs again in the same thread."""

    values: HostArray

    def numpy(self) -> HostArray:
        """Copy."""
        return self.values.copy()

    def argmax(self) -> Int64:
        """Index of the largest of each row, or -1, without copying the rows."""
        return best_of_rows(self.values)


class Requests(threading.local):
    """Requests of compiled graphs by their names, of each thread its own: one runs for one thread at a time.

    Args:
        graphs: The compiled graphs.
    """

    def __init__(self, graphs: Mapping[str, ov.CompiledModel]) -> None:
        self.of = {name: graph.create_infer_request() for name, graph in graphs.items()}
        self._bound: Mapping[str, HostArray] = {}

    def bind(self, graph: str, caches: Mapping[str, HostArray]) -> None:
        """Let a graph read these caches, if it does not yet: there are many, and they stay."""
        if caches is not self._bound:
            _give(self.of[graph], caches)
            self._bound = caches


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
        others = (DECODE,) if bundle.spec.quantization else ()
        rounded = not others and not exact and _has_bfloat16()
        super().__init__(
            OnnxRuntimeSession(
                bundle,
                graphs=others,
                threads=threads,
                exact=exact,
                prepacked=PREPACKED_FOR_BATCHES if batches else (),
                rounded_caches=rounded,
            )
        )
        self.bundle = bundle
        self._closed = False
        self._lengths = _lengths_of_caches(bundle.spec)
        files = [mapped_bytes(bundle.folder / file.path) for file in bundle.weights]
        self._weights = {name: tensor for file in files for name, tensor in file.items()}
        self._unpacked = set(GRAPHS)
        properties = _properties(bundle, threads, exact=exact)
        self._graphs = {g: self._compile(g, properties, rounded) for g in GRAPHS if g not in others}
        self._requests = Requests(self._graphs)

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph; see :meth:`star_export.engines.session.Session.run`."""
        assert caches is None or isinstance(caches, OnnxRuntimeCaches)
        refuse_closed(closed=self._closed)
        if graph not in self._graphs:
            return self.session.run(graph, feeds, caches)
        request, io = self._requests.of[graph], self.contract[graph]
        arrays = {name: _on_host(tensor) for name, tensor in feeds.items()}
        _give(request, arrays)
        views = caches.views() if caches is not None else {}
        if graph == DECODE:
            self._requests.bind(graph, views)
        try:
            with self._packing(graph):
                request.infer()
        except RuntimeError as error:
            raise BundleError(
                f"OpenVINO {ov.__version__} cannot run {self.bundle.graph_path(graph)}: {error}"
            ) from error
        for present, past in io.aliases.items() if views else ():
            _write(views[past], request.get_tensor(present).data, arrays.get(self._lengths[past]))
        return {t.name: OpenVinoArray(request.get_tensor(t.name).data) for t in io.plain_outputs}

    def close(self) -> None:
        """Let go of the graphs and of all caches."""
        self._closed = True
        self._graphs.clear()
        self._requests = Requests({})
        self._weights.clear()
        self.session.close()

    def _packing(self, graph: str) -> AbstractContextManager[None]:
        """A graph's run: its first copies what it reads of the files into another order."""
        if graph not in self._unpacked:
            return nullcontext()
        self._unpacked.discard(graph)
        return letting_go(self._weights.values())

    def _compile(self, graph: str, properties: dict[str, Any], rounded: bool) -> ov.CompiledModel:
        path = self.bundle.graph_path(graph)
        try:
            model = read_graph(self.bundle, graph, self._weights, rounded_caches=rounded)
            compiled = ov.Core().compile_model(model, "CPU", properties)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO {ov.__version__} cannot load {path}: {error}") from error
        found = {name for output in compiled.outputs for name in output.names}
        if missing := {tensor.name for tensor in self.contract[graph].outputs} - found:
            raise BundleError(
                f"{path} lacks {', '.join(sorted(missing)[:4])}, which the manifest says it has; "
                "build the bundle again"
            )
        return compiled


def _has_bfloat16() -> bool:
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _give(request: ov.InferRequest, arrays: Mapping[str, HostArray]) -> None:
    """Let a graph read arrays where they lie; one of bfloat16 holds its bits."""
    for name, array in arrays.items():
        if array.dtype == np.uint16:
            tensor = ov.Tensor(array, ov.Shape(array.shape), ov.Type.bf16)
        else:
            tensor = ov.Tensor(array, shared_memory=True)
        request.set_tensor(name, tensor)


def _on_host(tensor: Tensor) -> HostArray:
    """A tensor in memory that OpenVINO can read, without a copy if it is there."""
    return np.ascontiguousarray(tensor.values if isinstance(tensor, OpenVinoArray) else tensor)


def _write(cache: HostArray, update: HostArray, starts: HostArray | None) -> None:
    """Write ``update [B, H, C, D]`` into a cache, from ``starts [B]`` or 0."""
    for row, added in enumerate(update.view(cache.dtype)):  # NumPy takes bfloat16 for float16
        start = 0 if starts is None else int(starts[row])
        cache[row, :, start : start + added.shape[1]] = added


def _lengths_of_caches(spec: ExportSpec) -> dict[str, str]:
    """By past name, the input of decode that says how many tokens are in a cache."""
    found: dict[str, str] = {}
    for group, name, lengths in zip(spec.groups, group_names(spec), lengths_names(spec), strict=True):
        found |= {past: lengths for layer in group.layers for past in past_names(layer)}
        found[past_bias(name)] = lengths
    return found


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
