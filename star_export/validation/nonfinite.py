"""Where inf or NaN first comes up.

A session that looks at what its graphs return. When that is not finite, the
graph runs again on the same inputs in ONNX Runtime, a few nodes at a time, and
the first tensor in the graph's order that is not finite is named.

The first run of a float16 graph is gone through like that in any case: ONNX
Runtime's CPU provider computes most operators in float32 and rounds only at the
end, which hides what overflows on a GPU.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from star_export.bundle import Bundle
from star_export.contract import GRAPHS, PREFILL
from star_export.engines.session import Caches, DeviceArray, HostArray, Session, Tensor, Wrapper
from star_export.specs import ExportSpec
from star_export.validation.report import NonFinite

#: Nodes that run together; their outputs are in memory at the same time.
SEGMENT_NODES = 16

#: Operators of the fused attention and of its caches, which keep the bundle's element type.
_ATTENTION = ("Attention", "RotaryEmbedding", "TensorScatter")


class WatchedSession(Wrapper):
    """Another session that remembers where inf or NaN first came up.

    Args:
        session: What runs the graphs.
        bundle: The bundle it runs.

    Attributes:
        found: The first tensor that was not finite, None so far.
    """

    def __init__(self, session: Session, bundle: Bundle) -> None:
        super().__init__(session)
        self.bundle = bundle
        self.found: NonFinite | None = None
        self._unseen = set(GRAPHS) if self.spec.dtype == "float16" else set()

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph and look at its outputs, after prefill at the caches too."""
        outputs = self.session.run(graph, feeds, caches)
        if self.found is None:
            finite = self._finite(graph, outputs, caches)
            if not finite or graph in self._unseen:
                self._unseen.discard(graph)
                self.found = first_nonfinite(
                    self.bundle, graph, self._arrays(graph, feeds, caches), hidden=finite
                )
        return outputs

    def _arrays(self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None) -> dict[str, HostArray]:
        """Every input of a graph. The caches were written since, with what this run writes again."""
        arrays = {name: t if isinstance(t, np.ndarray) else t.numpy() for name, t in feeds.items()}
        if caches is not None:
            arrays |= {past: caches.numpy(past) for past in self.contract[graph].aliases.values()}
        return arrays

    def _finite(self, graph: str, outputs: Mapping[str, DeviceArray], caches: Caches | None) -> bool:
        arrays = [output.numpy() for output in outputs.values()]
        if graph == PREFILL and caches is not None:
            arrays += [caches.numpy(past) for past in self.contract[graph].aliases.values()]
        return all(bool(np.isfinite(array).all()) for array in arrays)


def first_nonfinite(
    bundle: Bundle, graph: str, feeds: Mapping[str, HostArray], *, hidden: bool = False
) -> NonFinite | None:
    """Run a graph a few nodes at a time and name the first tensor with inf or NaN.

    Memory holds what a few nodes give and what later ones still need. Masks of
    the graphs are finite; the body of ``star::TopKGather``, which ranks NaN as
    minus infinity, is run as one node.

    Args:
        bundle: The bundle.
        graph: ``vision``, ``prefill`` or ``decode``.
        feeds: Every input, finite, caches included.
        hidden: The graph's outputs are finite all the same: None if every tensor is.
    """
    if bundle.spec.dtype == "bfloat16":
        return NonFinite(graph, "", "", "", "ONNX Runtime cannot run bfloat16 to say where")
    module = ""
    for node, outputs in _nodes(bundle, graph, feeds):
        module = node.name.rpartition("/")[0] or module  # a sum belongs to what it adds
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                remedy = _remedy(bundle.spec, node, module)
                return NonFinite(graph, name, node.op_type, module, remedy, hidden)
    if hidden:
        return None
    return NonFinite(graph, "", "", "", "in ONNX Runtime every tensor is finite, node by node")


def _nodes(
    bundle: Bundle, graph: str, feeds: Mapping[str, HostArray]
) -> Iterator[tuple[onnx.NodeProto, dict[str, HostArray]]]:
    """Every node in order, with its outputs."""
    path = bundle.graph_path(graph)
    model = onnx.load(path, load_external_data=False)
    nodes = list(model.graph.node)
    last_use = {name: index for index, node in enumerate(nodes) for name in node.input}
    values = dict(feeds)
    for begin in range(0, len(nodes), SEGMENT_NODES):
        segment = nodes[begin : begin + SEGMENT_NODES]
        results = _run_segment(model, segment, values, str(path.parent))
        for node in segment:
            yield node, {name: results[name] for name in node.output if name}
        end = begin + len(segment)
        values = {name: a for name, a in (values | results).items() if last_use.get(name, -1) >= end}


def _run_segment(
    model: onnx.ModelProto, segment: list[onnx.NodeProto], values: Mapping[str, HostArray], weights: str
) -> dict[str, HostArray]:
    """Outputs of some nodes, given everything they read from earlier ones."""
    reads = {name for node in segment for name in node.input}
    made = [name for node in segment for name in node.output if name]
    types = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
    feeds = {name: values[name] for name in sorted(reads & values.keys())}
    graph = helper.make_graph(
        segment,
        model.graph.name,
        [_info(name, array) for name, array in feeds.items()],
        [types.get(name, onnx.ValueInfoProto(name=name)) for name in made],
        [tensor for tensor in model.graph.initializer if tensor.name in reads],
    )
    part = helper.make_model(
        graph, functions=model.functions, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights)
    session = ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(made, session.run(made, feeds), strict=True))


def _info(name: str, array: HostArray) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _remedy(spec: ExportSpec, node: onnx.NodeProto, module: str) -> str:
    """What keeps the output of ``node`` finite, in the words of ``star-export build``."""
    if spec.dtype == "float32":
        return "the weights or the input are out of float32's range"
    parent, _, leaf = module.rpartition(".")
    # What a block's linear layer gives, its next one reads: only the whole block helps.
    layer = parent if parent.endswith(("mlp", "multi_modal_projector")) else module
    kept = spec.weight_dtype(f"{layer}.weight") == "float32"
    if not layer or kept or leaf in ("q_proj", "k_proj", "v_proj") or node.op_type in _ATTENTION:
        return "build with --dtype bfloat16"
    return f"build with --fp32-layers {layer}, or with --dtype bfloat16"
