"""Layers that are alike are traced once for all of them.

Between two places where a graph does something else, every layer but the first computes the same, on weights
and caches of its own. The first, the second and the last of them are traced, and the second's nodes are
repeated for those between. So an export takes hardly longer for a deeper model.
"""

import re
from collections.abc import MutableSequence, Sequence
from itertools import groupby

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PreconditionError
from torch import nn

from star_export.contract import GraphSpec, past_names, present_names
from star_export.graphs.passes import module_of


def leave_out(layers: nn.Module, ends: set[int]) -> list[range]:
    """Remove the layers that need no tracing; the others keep their names.

    Args:
        layers: All layers of a graph, named by their numbers.
        ends: How many layers come before each place where the graph does something else.

    Returns:
        The numbers of those removed, a range for each row of them.
    """

    def kind(number: int) -> object:
        weights = layers.get_submodule(str(number)).parameters()
        return sum(end <= number for end in ends), [weight.dtype for weight in weights]

    rows = [list(row) for _, row in groupby(range(len(list(layers.children()))), kind)]
    gaps = [range(row[2], row[-1]) for row in rows if len(row) > 3]
    for number in (number for gap in gaps for number in gap):
        delattr(layers, str(number))
    return gaps


def without_caches(borders: GraphSpec, gaps: list[range]) -> GraphSpec:
    """A graph's inputs and outputs without the caches of layers that are left out."""
    layers = [layer for gap in gaps for layer in gap]
    left_out = {name for layer in layers for name in (*past_names(layer), *present_names(layer))}
    inputs, outputs = (
        tuple(tensor for tensor in side if tensor.name not in left_out)
        for side in (borders.inputs, borders.outputs)
    )
    return GraphSpec(inputs, outputs)


class RepeatLayers(InPlacePass):
    """Put in the layers that were left out, each as the traced one before them.

    Needs an optimised graph whose nodes say their modules. Leaves inputs and outputs in the contract's order.

    Args:
        stack: Name of the module that holds the layers.
        gaps: Numbers of the layers that were left out, a range for each row of them.
        borders: The contract of the graph.
    """

    def __init__(self, stack: str, gaps: list[range], borders: GraphSpec) -> None:
        self.stack, self.gaps, self.borders = stack, gaps, borders

    def requires(self, model: ir.Model) -> None:
        for gap in self.gaps:
            entering, layer, behind = self._pattern(model, gap)
            seen = {entering: layer[-1].outputs[0]}
            for node, other in zip(layer, behind, strict=False):
                seen.update(zip(node.outputs, other.outputs, strict=False))
                expected = [value and seen.get(value, value) for value in node.inputs]
                if _kind(node) != _kind(other) or not _same(expected, other.inputs, gap.start - 1, gap.stop):
                    raise PreconditionError(
                        f"{node.name} of layer {gap.start - 1} and {other.name} of layer {gap.stop} differ"
                    )

    def call(self, model: ir.Model) -> PassResult:
        graph = model.graph
        for gap in self.gaps:
            _repeat(graph, *self._pattern(model, gap), gap)
        _sort(graph.inputs, [tensor.name for tensor in self.borders.inputs])
        _sort(graph.outputs, [tensor.name for tensor in self.borders.outputs])
        return PassResult(model, modified=bool(self.gaps))

    def _pattern(self, model: ir.Model, gap: range) -> tuple[ir.Value, list[ir.Node], list[ir.Node]]:
        """What enters the layer before a gap, that layer's nodes, and all nodes behind the gap."""
        nodes = list(model.graph)
        begin, end = (self._first_node(nodes, layer) for layer in (gap.start - 1, gap.stop))
        return nodes[begin - 1].outputs[0], nodes[begin:end], nodes[end:]

    def _first_node(self, nodes: list[ir.Node], layer: int) -> int:
        name = f"{self.stack}.{layer}"
        for place, node in enumerate(nodes):
            if f"{module_of(node)}.".startswith(f"{name}."):
                return place
        raise PreconditionError(f"no node is of {name}")


def _kind(node: ir.Node) -> object:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return node.op_identifier(), attributes, [(value.shape, value.type) for value in node.outputs]


def _same(values: list[ir.Value | None], others: Sequence[ir.Value | None], old: int, new: int) -> bool:
    """Whether two layers' values are the same, or of the same name but for the layer's number."""
    return len(values) == len(others) and all(
        a is b or (a is not None and b is not None and _renamed(a, old, new) == b.name)
        for a, b in zip(values, others, strict=True)
    )


def _repeat(
    graph: ir.Graph, entering: ir.Value, layer: list[ir.Node], behind: list[ir.Node], gap: range
) -> None:
    """Repeat a layer's nodes for every number in ``gap``, before those ``behind`` it."""
    leaving = layer[-1].outputs[0]
    uses, x = leaving.uses(), leaving
    for number in gap:
        copies = {entering: x}
        for node in layer:
            graph.insert_before(behind[0], _copy(graph, node, copies, gap.start - 1, number))
        x = copies[leaving]
    for node, index in uses:
        node.replace_input_with(index, x)


def _copy(graph: ir.Graph, node: ir.Node, copies: dict[ir.Value, ir.Value], old: int, new: int) -> ir.Node:
    """A node of layer ``old`` in layer ``new``; ``copies``, of the one's values to the other's, grows."""
    for value in node.inputs:
        if value is not None and value not in copies and (name := _renamed(value, old, new)) != value.name:
            copies[value] = _like(value, name)
            if value.is_graph_input():
                graph.inputs.append(copies[value])
            else:
                graph.initializers.add(copies[value])
    for value in node.outputs:
        if value.is_graph_output():
            copies[value] = _like(value, _renamed(value, old, new))
            graph.outputs.append(copies[value])
        else:
            copies[value] = _like(value, f"{value.name}.{new}")
    return ir.Node(
        node.domain,
        node.op_type,
        [value and copies.get(value, value) for value in node.inputs],
        node.attributes,
        outputs=[copies[value] for value in node.outputs],
        version=node.version,
        name=f"{node.name}.{new}",
        metadata_props={
            key: re.sub(rf"\.{old}\b", f".{new}", text) for key, text in node.metadata_props.items()
        },
    )


def _renamed(value: ir.Value, old: int, new: int) -> str:
    """The name that a weight or cache of layer ``old`` has in layer ``new``."""
    return re.sub(rf"\.{old}\.", f".{new}.", str(value.name))


def _like(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, shape=value.shape, type=value.type)


def _sort(values: MutableSequence[ir.Value], names: list[str]) -> None:
    found = {str(value.name): value for value in values}
    values[:] = [found[name] for name in names]
