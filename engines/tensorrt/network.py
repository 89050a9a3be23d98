"""From a graph file to a TensorRT network that is the same graph, or an error."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from star_export.engines.tensorrt.bindings import Bindings
from star_export.engines.tensorrt.facts import Profile
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


def parse(
    bindings: Bindings,
    builder: Any,
    path: Path,
    *,
    profiles: Mapping[str, Profile],
    with_plugin: bool,
    shared_weights: bool,
) -> Any:
    """A strongly typed network of the graph in ``path``.

    Args:
        bindings: TensorRT.
        builder: Its builder.
        path: An ONNX file of the bundle; weights are read from beside it.
        profiles: Ranges of the inputs; a size that has one value is a number in the network.
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
    pin_sizes(model, profiles)
    if shared_weights:
        move_weights_to_inputs(model)
    if not parser.parse(model.SerializeToString(), str(path)):
        raise BundleError(f"{path}: {_refusal(parser, bindings)}")
    _compare_layers(path, counts, network)
    multiply_by_turned(trt, network)
    return network


def pin_sizes(model: onnx.ModelProto, profiles: Mapping[str, Profile]) -> None:
    """Put the number in the place of each symbolic size that has one value in the profiles.

    TensorRT demands it of KV caches: it writes in place only where the capacity is static.
    """
    graph = model.graph
    pinned: dict[str, int] = {}
    for tensor in graph.input:
        if profile := profiles.get(tensor.name):
            dims = zip(tensor.type.tensor_type.shape.dim, profile.min, profile.max, strict=True)
            pinned |= {dim.dim_param: low for dim, low, high in dims if dim.dim_param and low == high}
    for tensor in (*graph.input, *graph.output, *graph.value_info):
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_param in pinned:
                dim.dim_value = pinned[dim.dim_param]
    _fold(graph)


def _fold(graph: onnx.GraphProto) -> None:
    """Compute what follows from the inputs' numbers alone.

    TensorRT-RTX 1.7.1 makes "uses before defs" of masks whose length it has to compute itself, where several
    groups of caches have one.
    """
    shapes = {tensor.name: tensor.type.tensor_type.shape.dim for tensor in graph.input}
    inline = (t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL)
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in inline}
    evaluator: Any
    for node in list(graph.node):
        if node.op_type == "Shape" and node.input[0] in shapes:
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            sizes = [dim.dim_value for dim in shapes[node.input[0]]][ends.get("start", 0) : ends.get("end")]
            values = np.array(sizes) if all(sizes) else None
        elif node.domain == "" and len(node.output) == 1 and known.keys() >= set(node.input) > set():
            evaluator = ReferenceEvaluator(node)
            (values,) = evaluator.run(None, {name: known[name] for name in node.input})
        else:
            values = None
        if values is not None:
            known[node.output[0]] = values
            graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
            graph.node.remove(node)


def move_weights_to_inputs(model: onnx.ModelProto) -> None:
    """Let each tensor that lies in a weights file be an input of its name."""
    graph = model.graph
    stored = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored)
    for tensor in stored:
        graph.initializer.remove(tensor)


def multiply_by_turned(trt: Any, network: Any) -> None:
    """Let each product read a weight ``[out, in]`` as it lies, where a layer before it would turn a copy.

    A copy of every weight at every step would take longer than the products; nothing says that TensorRT
    always makes one layer of the two.
    """
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    shuffles: dict[str, Any] = {}
    for layer in layers:
        if layer.type == trt.LayerType.SHUFFLE:
            layer.__class__ = trt.IShuffleLayer
            shuffles[layer.get_output(0).name] = layer
    for product in layers:
        if product.type != trt.LayerType.MATRIX_MULTIPLY:
            continue
        *widening, turn = _chain(product.get_input(1).name, shuffles) or [None]
        if turn and len(turn.get_input(0).shape) == 2 and tuple(turn.first_transpose)[:2] == (1, 0):
            turn.first_transpose = trt.Permutation(range(len(turn.first_transpose)))
            for shuffle in widening:
                shuffle.reshape_dims = (1, *turn.get_input(0).shape)
            product.__class__ = trt.IMatrixMultiplyLayer
            product.op1 = trt.MatrixOperation.TRANSPOSE


def _chain(name: str, shuffles: Mapping[str, Any]) -> list[Any]:
    """The shuffles behind which a tensor comes, the last first."""
    found = []
    while shuffle := shuffles.get(name):
        found.append(shuffle)
        name = shuffle.get_input(0).name
    return found


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
