"""Repeating traced layers gives what tracing all of them gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx_ir.passes import PreconditionError
from torch import nn

from star_export.contract import DECODE, GRAPHS, GraphSpec, TensorSpec
from star_export.graphs import export
from star_export.graphs.alike import RepeatLayers, leave_out
from star_export.specs import ExportSpec
from tests.graphs.random_graphs import export_random, small, staged_spec
from tests.shapes import WHOLE

SCOPES = "pkg.torch.onnx.name_scopes"


def eight_layers() -> ExportSpec:
    """Five decoder layers, then two and one in float32; six tower layers."""
    model = small(WHOLE, layers=8)
    model = replace(model, vision=replace(model.vision, num_layers=6, feature_layers=(6,)))
    spec = staged_spec(model, (0, "received", 12), (5, "text", 6))
    return replace(spec, fp32_layers=("language_model.layers.7.mlp.down_proj",))


def signature(path: Path) -> dict[str, Any]:
    """All that a graph says, but for the names of nodes and of the values inside."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {t.name: repr(numpy_helper.to_array(t)) for t in graph.initializer if not t.external_data}
    own = {t.name for t in (*graph.input, *graph.output)} | {t.name for t in graph.initializer}
    numbers = {name: name for name in own - constants.keys()}
    # Of which cache a group's capacity is read, differs.
    caches = {t.name: repr(t.type) for t in graph.input if t.name.startswith("past")}

    def number(name: str) -> str:
        return constants.get(name) or numbers.setdefault(name, str(len(numbers)))

    nodes = [
        (
            node.name.rpartition("/")[0], node.op_type, node.domain,
            [caches.get(n, number(n)) if node.op_type == "Shape" else number(n) for n in node.input],
            [number(name) for name in node.output],
            sorted(attribute.SerializeToString() for attribute in node.attribute),
        )
        for node in graph.node
    ]  # fmt: skip
    shapes = {number(info.name): info.type.SerializeToString() for info in graph.value_info}
    borders = [info.SerializeToString() for info in (*graph.input, *graph.output)]
    weights = sorted(t.SerializeToString() for t in graph.initializer if t.external_data)
    return {"nodes": nodes, "shapes": shapes, "borders": borders, "weights": weights}


@pytest.mark.parametrize(("graph", "text_tokens"), [*((graph, 16) for graph in GRAPHS), (DECODE, 2000)])
def test_repeated_layers_are_traced_layers(
    graph: str, text_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps: list[list[range]] = []

    def watched(layers: nn.Module, ends: set[int]) -> list[range]:
        gaps.append(leave_out(layers, ends))
        return gaps[-1]

    spec = replace(
        eight_layers(), max_text_tokens=text_tokens
    )  # many: constants that none takes for the same
    monkeypatch.setattr(export, "leave_out", watched)
    repeated = signature(export_random(spec, graph, tmp_path))
    monkeypatch.setattr(export, "leave_out", lambda layers, ends: [])
    assert signature(export_random(spec, graph, tmp_path)) == repeated
    assert gaps == [[range(2, 4)]]


def linears(count: int, *wide: int) -> nn.ModuleList:
    layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(count))
    for number in wide:
        layers[number].to(torch.float64)
    return layers


@pytest.mark.parametrize(
    ("layers", "ends", "gaps"),
    [
        (linears(3), set(), []),
        (linears(4), set(), [range(2, 3)]),
        (linears(32), {14}, [range(2, 13), range(16, 31)]),
        (linears(9), {4, 8}, [range(2, 3), range(6, 7)]),
        (linears(5), {0, 5}, [range(2, 4)]),  # before all and behind all
        (linears(8, 3), set(), [range(6, 7)]),
        (linears(6, 2, 3, 4, 5), set(), [range(4, 5)]),
    ],
)
def test_which_layers_are_left_out(layers: nn.ModuleList, ends: set[int], gaps: list[range]) -> None:
    count = len(layers)
    assert leave_out(layers, ends) == gaps
    left_out = {str(number) for gap in gaps for number in gap}
    assert [name for name, _ in layers.named_children()] == [
        str(number) for number in range(count) if str(number) not in left_out
    ]


ROW = """
<ir_version: 10, opset_import: ["": 24]>
row (float[2] x, float[2] shared) => (float[2] y) {
    a = Add (x, w0)
    b = Mul (a, shared)
    c = Add (b, w1)
    d = Mul (c, shared)
    e = Add (d, w3)
    f = LAST
    y = Neg (f)
}
"""


def row(last: str = "Mul (e, shared)") -> ir.Model:
    """Layers 0, 1 and 3 of a row, each ``(x + weight) * shared``."""
    model = ir.from_onnx_text(ROW.replace("LAST", last))
    for node, layer in zip(model.graph, (0, 0, 1, 1, 3, 3), strict=False):
        node.metadata_props[SCOPES] = repr(["", f"stack.{layer}", "node"])
        for value in (
            value for value in node.inputs if value is not None and str(value.name).startswith("w")
        ):
            value.name, value.shape, value.dtype = f"stack.{layer}.w", ir.Shape([2]), ir.DataType.FLOAT
            model.graph.initializers.add(value)
    return model


def repeat(*gaps: range) -> RepeatLayers:
    inputs = [TensorSpec(name, "float32", (2,)) for name in ("x", "shared")]
    return RepeatLayers("stack", list(gaps), GraphSpec((*inputs,), (TensorSpec("y", "float32", (2,)),)))


def test_a_repeated_layer_has_weights_of_its_own() -> None:
    model = row()
    repeat(range(2, 3))(model)
    nodes = [(node.op_type, [value.name for value in node.inputs if value]) for node in model.graph]
    assert nodes == [
        ("Add", ["x", "stack.0.w"]),
        ("Mul", ["a", "shared"]),
        ("Add", ["b", "stack.1.w"]),
        ("Mul", ["c", "shared"]),
        ("Add", ["d", "stack.2.w"]),
        ("Mul", ["c.2", "shared"]),
        ("Add", ["d.2", "stack.3.w"]),
        ("Mul", ["e", "shared"]),
        ("Neg", ["f"]),
    ]
    assert list(model.graph.initializers) == ["stack.0.w", "stack.1.w", "stack.3.w", "stack.2.w"]


@pytest.mark.parametrize("last", ["Div (e, shared)", "Mul (e, x)", "Mul (e, b)", "Mul (e, c)"])
def test_layers_that_differ_are_refused(last: str) -> None:
    with pytest.raises(PreconditionError, match=r"of layer 1 and \w* of layer 3 differ"):
        repeat(range(2, 3)).requires(row(last))


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(PreconditionError, match=r"no node is of stack\.7"):
        repeat(range(2, 7)).requires(row())
