"""From a graph file to a TensorRT network that is the same graph, or an error."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from star_export.engines.tensorrt.bindings import Bindings
from star_export.engines.tensorrt.review import op_counts, review
from star_export.errors import BundleError, option

#: Operators that become exactly one layer of a kind that nothing else becomes.
LAYER_OF = {
    "Attention": "ATTENTION_INPUT",
    "Conv": "CONVOLUTION",
    "LayerNormalization": "NORMALIZATION",
    "MatMul": "MATRIX_MULTIPLY",
    "RotaryEmbedding": "ROTARY_EMBEDDING",
    "Softmax": "SOFTMAX",
    "TensorScatter": "KV_CACHE_UPDATE",
    "TopK": "TOPK",
}


def parse(bindings: Bindings, builder: Any, path: Path, *, with_plugin: bool, shared_weights: bool) -> Any:
    """A strongly typed network of the graph in ``path``.

    Args:
        bindings: TensorRT.
        builder: Its builder.
        path: An ONNX file of the bundle; weights are read from beside it.
        with_plugin: Whether ``TopKGather`` is a registered plugin rather than its function body.
        shared_weights: Whether weights are inputs of the network rather than constants.

    Raises:
        BundleError: If the parser refuses a node, or would get one wrong.
    """
    trt = bindings.trt
    model = review(path)
    counts = op_counts(model, with_plugin=with_plugin)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, bindings.logger)
    if shared_weights:
        parsed = parser.parse(with_weights_as_inputs(model).SerializeToString())
    else:
        parsed = parser.parse_from_file(str(path))
    if not parsed:
        raise BundleError(f"{path}: {_refusal(parser, bindings)}")
    _compare_layers(path, counts, network)
    return network


def with_weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with an input, of the same name, for each tensor that lies in a weights file."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    stored = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored)
    for tensor in stored:
        graph.initializer.remove(tensor)
    return changed


def _refusal(parser: Any, bindings: Bindings) -> str:
    """The first node that the parser refused: its name, operator and the reason."""
    error = parser.get_error(0)
    reason = " ".join(error.desc().split())
    node = f"node {error.node_name() or error.node()} ({error.node_operator()})"
    return (
        f"{bindings.backend} {bindings.version} does not accept {node}: {reason}; "
        f"build the bundle again, or run it with {option('backend', 'onnxruntime')}"
    )


def _compare_layers(path: Path, counts: dict[str, int], network: Any) -> None:
    """Refuse a network whose layers are not those of the graph.

    Raises:
        BundleError: Naming the operator and both counts.
    """
    found = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    for operator, layer in LAYER_OF.items():
        expected = counts.get(operator, 0)
        if found[layer] != expected:
            raise BundleError(
                f"{path}: the graph has {expected} {operator} nodes, TensorRT's parser made "
                f"{found[layer]} {layer} layers of them, so the engine would compute something else; "
                f"use another TensorRT version, or {option('backend', 'onnxruntime')}"
            )
