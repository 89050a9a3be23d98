"""The network that TensorRT-RTX's parser makes of a graph, changed where it should be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from star_export.bundle import open_bundle
from star_export.contract import DECODE, PREFILL, VISION
from star_export.engines.tensorrt.bindings import load_bindings
from star_export.engines.tensorrt.network import parse
from star_export.engines.tensorrt.profiles import engine_profiles

pytest.importorskip("tensorrt_rtx")
RTX = load_bindings("tensorrt-rtx")
TURNED = RTX.trt.MatrixOperation.TRANSPOSE


def products(network: Any) -> dict[str, Any]:
    """Every product of a network, by its node."""
    layers = (network.get_layer(number) for number in range(network.num_layers))
    found = {layer.name: layer for layer in layers if layer.type == RTX.trt.LayerType.MATRIX_MULTIPLY}
    for layer in found.values():
        layer.__class__ = RTX.trt.IMatrixMultiplyLayer
    return found


@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("graph", [VISION, PREFILL, DECODE])
def test_products_read_weights_as_they_lie(bundle: Callable[..., Path], graph: str, inputs: bool) -> None:
    made = open_bundle(bundle("mha", dtype="float16"))
    path, builder = made.graph_path(graph), RTX.trt.Builder(RTX.logger)
    profiles = engine_profiles(made.spec, max_batch=2)[graph]
    network = parse(RTX, builder, path, profiles=profiles, with_plugin=False, shared_weights=inputs)
    model = onnx.load(path, load_external_data=False)
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    turned = {
        n.output[0]: stored[n.input[0]]
        for n in model.graph.node
        if n.op_type == "Transpose" and n.input[0] in stored
    }
    weights = {
        node.name: turned[node.input[1]]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in turned
    }
    found = products(network)
    assert len(weights) > 10
    assert {name for name, layer in found.items() if layer.op1 == TURNED} == weights.keys()
    for name, shape in weights.items():
        assert tuple(found[name].get_input(1).shape)[-2:] == shape
        assert found[name].get_output(0).shape[-1] == shape[0]
