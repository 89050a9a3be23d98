"""Each pass of the export on a model of a few nodes: what it leaves, and what it refuses."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import PostconditionError, PreconditionError
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnx_ir.tensor_adapters import TorchTensor
from torch import nn

from star_export.contract import GraphSpec, TensorSpec
from star_export.graphs.passes import (
    AttachWeights,
    DeclareBorders,
    DefineStarOps,
    DetachLengths,
    DetachWeights,
    NameModel,
    NameNodes,
    Optimize,
)
from star_export.graphs.weights import StoredTensor, WeightsFile, write_weights

SCOPES = "pkg.torch.onnx.name_scopes"
DECODE = """
<ir_version: 10, opset_import: ["": 24]>
decode (int64[s0] early_lengths, int64[s0] group2_lengths, int64[s0] late_lengths) => (int64[s0] y) {
    a = Mul (early_lengths, group2_lengths)
    b = Mul (a, late_lengths)
    y = Sub (b, late_lengths)
}
"""
PRODUCT = """
<ir_version: 10, opset_import: ["": 24]>
product (float[s0, 2] x) => (float[s0, 3] y) {
    wide = Identity (x)
    y = MatMul (wide, w)
}
"""


def model(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def product(weight: ir.TensorProtocol | None = None) -> ir.Model:
    """``y = x @ w``, with a weight of no known value unless one is given."""
    found = model(PRODUCT)
    w = found.graph[1].inputs[1]
    w.shape, w.dtype, w.const_value = ir.Shape([2, 3]), ir.DataType.FLOAT, weight
    found.graph.initializers.add(w)
    return found


def fake() -> TorchTensor:
    return TorchTensor(nn.Parameter(torch.ones(2, 3)), name="w")


def nodes(found: ir.Model) -> list[tuple[str, list[str | None], list[str | None]]]:
    return [(n.op_type, [v.name for v in n.inputs if v], [v.name for v in n.outputs]) for n in found.graph]


def test_weights_are_detached_and_constants_stay() -> None:
    constant = ir.tensor([[1.0] * 3] * 2, name="w")
    for weight, left in ((fake(), None), (constant, constant)):
        found = product(weight)
        assert DetachWeights()(found).modified == (left is None)
        assert found.graph.initializers["w"].const_value is left


def test_the_optimiser_removes_what_has_no_effect() -> None:
    found = product()
    Optimize()(found)
    assert nodes(found) == [("MatMul", ["x", "w"], ["y"])]


def test_the_optimiser_runs_on_detached_weights_and_before_lengths_are_detached() -> None:
    with pytest.raises(PreconditionError, match="w has a fake value; detach weights before the optimiser"):
        Optimize()(product(fake()))
    found = model(DECODE)
    DetachLengths()(found)
    with pytest.raises(PreconditionError, match="the optimiser has to run before"):
        Optimize()(found)


def test_lengths_of_every_group_but_the_first_pass_through_a_node_at_the_front() -> None:
    found = model(DECODE)
    assert DetachLengths()(found).modified
    assert nodes(found) == [
        ("Add", ["group2_lengths", "zero"], ["group2_write_indices"]),
        ("Add", ["late_lengths", "zero"], ["late_write_indices"]),
        ("Mul", ["early_lengths", "group2_write_indices"], ["a"]),
        ("Mul", ["a", "late_write_indices"], ["b"]),
        ("Sub", ["b", "late_write_indices"], ["y"]),
    ]
    assert found.graph.initializers["zero"].const_value.numpy().tolist() == [0]
    assert [node.name for node in found.graph][:2] == ["group2", "late"]
    assert found.graph[0].outputs[0].shape == ["s0"]


def test_lengths_that_other_nodes_use_are_not_detached() -> None:
    with pytest.raises(PostconditionError, match="group2_lengths is used by other nodes"):
        DetachLengths().ensures(model(DECODE))


def test_a_single_group_needs_no_node() -> None:
    found = model(DECODE.replace("group2_lengths", "one").replace("late_lengths", "two"))
    before = nodes(found)
    assert not DetachLengths()(found).modified
    assert nodes(found) == before


def written(path: Path, **tensors: torch.Tensor) -> WeightsFile:
    stored = [
        StoredTensor(name=name, shape=tuple(t.shape), dtype=str(t.dtype)[6:], load=lambda t=t: t)
        for name, t in tensors.items()
    ]
    return write_weights(path, stored, lambda _: None)


def test_weights_point_into_their_file(tmp_path: Path) -> None:
    values = torch.arange(6.0).view(2, 3)
    weights = written(tmp_path / "w.safetensors", other=torch.ones(5), w=values)
    found = product()
    AttachWeights(weights)(found)
    ir.save(found, tmp_path / "product.onnx")
    tensor = ir.load(tmp_path / "product.onnx").graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert (tensor.location, tensor.offset) == ("w.safetensors", weights.slices["w"].offset)
    assert tensor.numpy().tolist() == values.tolist()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"v": torch.ones(2, 3)}, "w.safetensors has no tensor w"),
        ({"w": torch.ones(3, 2)}, r"the graph has w as FLOAT \[2,3\], w.safetensors as FLOAT \[3,2\]"),
        ({"w": torch.ones(2, 3).half()}, r"w as FLOAT \[2,3\], w.safetensors as FLOAT16 \[2,3\]"),
    ],
)
def test_weights_that_the_file_has_not(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(PreconditionError, match=message):
        AttachWeights(written(tmp_path / "w.safetensors", **tensors))(product())


def borders(**inputs: tuple[int | str, ...]) -> GraphSpec:
    return GraphSpec(
        tuple(TensorSpec(name, "int64", shape) for name, shape in inputs.items()),
        (TensorSpec("y", "int64", (1, "S - V")),),
    )


TRACED = """
<ir_version: 10, opset_import: ["": 24]>
prefill (int64[1, s7] ids, int64[s9] places) => (int64[1, s7_minus_s9] y) {
    a = Add (ids, ids)
    y = Sub (a, ids)
}
"""


def test_sizes_get_the_contracts_symbols() -> None:
    found = model(TRACED)
    found.graph[0].outputs[0].shape = ir.Shape([1, "s7 + s9 - 2", "s70"])
    DeclareBorders(borders(ids=(1, "S"), places=("V",)))(found)
    assert [list(value.shape) for value in found.graph.inputs] == [[1, "S"], ["V"]]
    assert list(found.graph.outputs[0].shape) == [1, "S - V"]
    assert list(found.graph[0].outputs[0].shape) == [1, "S + V - 2", "s70"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ids": (1, "S"), "position": ("V",)}, r"traced inputs are \['ids', 'places'\]"),
        ({"ids": (1, "S")}, r"traced inputs are \['ids', 'places'\]"),
        ({"ids": (2, "S"), "places": ("V",)}, r"ids: traced \[1,s7\], expected \(2, 'S'\)"),
        ({"ids": (1, "S"), "places": (1, "V")}, r"places: traced \[s9\], expected \(1, 'V'\)"),
        ({"ids": (1, "S"), "places": (9,)}, r"places: traced \[s9\], expected \(9,\)"),
    ],
)
def test_a_graph_with_other_borders(inputs: dict[str, tuple[int | str, ...]], message: str) -> None:
    with pytest.raises(PreconditionError, match=message):
        DeclareBorders(borders(**inputs))(model(TRACED))


CALL = """
<ir_version: 10, opset_import: ["": 24, "star": 1]>
vision (float[1, s0, 8] x, float[1, s0] scores, int64[s1] slots) => (float[1, s1, 8] y) {
    y, indices = star.TopKGather (x, scores, slots)
}
"""


def test_operators_get_their_body_where_they_are_called() -> None:
    called, uncalled = model(CALL), model(DECODE)
    for found in (called, uncalled):
        DefineStarOps()(found)
        assert found.opset_imports == {"": 24, "star": 1}
    assert [function.name for function in called.functions.values()] == ["TopKGather"]
    assert not uncalled.functions


def test_an_operator_without_a_body() -> None:
    with pytest.raises(PostconditionError, match="TopKGather has no function body"):
        DefineStarOps().ensures(model(CALL))


def named(*scopes: list[str]) -> ir.Model:
    found = model(DECODE)
    for number, (node, names) in enumerate(zip(found.graph, scopes, strict=True)):
        node.name = f"node_{number}"
        node.metadata_props[SCOPES] = repr(names)
    return found


def test_nodes_are_named_after_their_module() -> None:
    found = named(["", "layers", "layers.0", "mul"], ["", "mul"], ["", "rotary", "sub"])
    NameNodes()(found)
    assert [node.name for node in found.graph] == ["layers.0/node_0", "node_1", "node_2"]


def test_nodes_are_named_before_metadata_is_cleared() -> None:
    found = named(["", "layers.0", "mul"], ["", "mul"], ["", "sub"])
    ClearMetadataAndDocStringPass()(found)
    with pytest.raises(PreconditionError, match="name nodes before metadata is cleared"):
        NameNodes()(found)


def test_the_model_says_which_graph_it_is() -> None:
    found = model(DECODE)
    found.producer_name, found.producer_version = "pytorch", "2.9"
    NameModel("vision")(found)
    assert (found.producer_name, found.producer_version, found.graph.name) == ("star-export", None, "vision")
