"""From a graph file to a TensorRT network that is the same graph, or an error."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from star_export.contract import LATE_LENGTHS
from star_export.engines.tensorrt.bindings import Bindings
from star_export.engines.tensorrt.review import op_counts, review
from star_export.errors import BundleError

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


def parse(bindings: Bindings, builder: Any, path: Path, *, with_plugin: bool) -> Any:
    """A strongly typed network of the graph in ``path``.

    Args:
        bindings: TensorRT.
        builder: Its builder.
        path: An ONNX file of the bundle; weights are read from beside it.
        with_plugin: Whether ``TopKGather`` is a registered plugin rather than its function body.

    Raises:
        BundleError: If the parser refuses a node, or would get one wrong.
    """
    trt = bindings.trt
    model = review(path)
    counts = op_counts(model, with_plugin=with_plugin)
    _detach_late_lengths(model)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, bindings.logger)
    if not parser.parse(model.SerializeToString(), str(path)):
        raise BundleError(f"{path}: {_refusal(parser, bindings)}")
    _compare_layers(path, counts, network)
    return network


def _detach_late_lengths(model: onnx.ModelProto) -> None:
    """Let the late layers' write indices come out of a layer, not straight from an input.

    Two groups of KV cache updates whose indices are two network inputs crash the builder of
    TensorRT-RTX 1.7.1 (a segmentation fault). One addition of zero, at the front, avoids it.
    """
    if LATE_LENGTHS not in {value.name for value in model.graph.input}:
        return
    detached, zero = f"{LATE_LENGTHS}_detached", f"{LATE_LENGTHS}_zero"
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == LATE_LENGTHS:
                node.input[position] = detached
    model.graph.initializer.append(onnx.helper.make_tensor(zero, onnx.TensorProto.INT64, [1], [0]))
    model.graph.node.insert(0, onnx.helper.make_node("Add", [LATE_LENGTHS, zero], [detached]))


def _refusal(parser: Any, bindings: Bindings) -> str:
    """The first node that the parser refused: its name, operator and the reason."""
    error = parser.get_error(0)
    reason = " ".join(error.desc().split())
    node = f"node {error.node_name() or error.node()} ({error.node_operator()})"
    return (
        f"{bindings.backend} {bindings.version} does not accept {node}: {reason}; "
        "build the bundle again, or run it with --backend onnxruntime"
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
                "use another TensorRT version, or --backend onnxruntime"
            )
