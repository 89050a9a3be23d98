"""What is done to a traced graph before it is saved, as passes of onnx-ir.

Each says what it needs and what it leaves. What is cheap to check is checked at
every export, so passes in a wrong order are refused and write nothing.
"""

import ast
import re

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass
from onnxscript import optimizer
from torch import nn

from star_export.contract import STAR_DOMAIN, STAR_DOMAIN_VERSION, GraphSpec, is_lengths
from star_export.graphs.ops import topk_gather_function
from star_export.graphs.weights import WeightsFile

_SCOPES = "pkg.torch.onnx.name_scopes"
_ZERO = "zero"


class DetachWeights(InPlacePass):
    """Take the fake values of weights away.

    Needs a traced graph. Leaves weights as initializers without a value, about
    which the optimiser assumes nothing, and constants as they are.
    """

    def call(self, model: ir.Model) -> PassResult:
        weights = [value for value in model.graph.initializers.values() if _is_fake(value)]
        for value in weights:
            value.const_value = None
        return PassResult(model, bool(weights))


class Optimize(InPlacePass):
    """Fold constants and remove what has no effect.

    Needs weights without fake values, which it would fold, and no ``Add(lengths, 0)``
    of :class:`DetachLengths`, which it would remove.
    """

    def requires(self, model: ir.Model) -> None:
        for name, value in model.graph.initializers.items():
            if _is_fake(value):
                raise PreconditionError(f"{name} has a fake value; detach weights before the optimiser")
        if _ZERO in model.graph.initializers:
            raise PreconditionError("lengths are detached; the optimiser has to run before that")

    def call(self, model: ir.Model) -> PassResult:
        optimizer.optimize_ir(model)
        # The optimiser lets each layer have its own numbers from 0 to a capacity above 1,024.
        DeduplicateInitializersPass(size_limit=1 << 20)(model)
        CommonSubexpressionEliminationPass()(model)
        return PassResult(model, modified=True)


class DetachLengths(InPlacePass):
    """Let write indices of all layer groups but the first come out of a node, not straight from an input.

    Two groups of TensorScatter whose indices are two graph inputs crash the builder of
    TensorRT-RTX 1.7.1 (a segmentation fault), whoever calls it; one addition of zero avoids
    that, if it is the very first node.

    Needs an optimised graph, and that no pass after it moves nodes. Leaves ``Add(lengths, 0)`` of
    every group but the first at the front, in the groups' order, and no other use of these inputs.
    """

    def call(self, model: ir.Model) -> PassResult:
        graph, later = model.graph, _later_lengths(model)
        if not later:
            return PassResult(model, modified=False)
        zero = _int64(_ZERO, ir.Shape([1]), value=[0])
        graph.register_initializer(zero)
        first = graph[0]
        for lengths in later:
            group = str(lengths.name).removesuffix("_lengths")
            indices = _int64(f"{group}_write_indices", lengths.shape)
            ir.convenience.replace_all_uses_with(lengths, indices)
            graph.insert_before(first, ir.Node("", "Add", [lengths, zero], outputs=[indices], name=group))
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        for node, lengths in zip(model.graph, _later_lengths(model), strict=False):
            if node.op_type != "Add" or [use.node for use in lengths.uses()] != [node]:
                raise PostconditionError(f"{lengths.name} is used by other nodes than an Add at the front")


class AttachWeights(InPlacePass):
    """Point every weight at its bytes in a weights file, by its stored name.

    Needs initializers that the file has, in its shapes and element types. Leaves none without a value.
    """

    def __init__(self, weights: WeightsFile) -> None:
        self.weights = weights

    def requires(self, model: ir.Model) -> None:
        for value in _without_value(model):
            if value.name not in self.weights.slices:
                raise PreconditionError(f"{self.weights.path.name} has no tensor {value.name}")
            stored = self.weights.external_tensor(value.name)
            if (value.shape, value.dtype) != (stored.shape, stored.dtype):
                raise PreconditionError(
                    f"the graph has {value.name} as {value.dtype} {value.shape}, "
                    f"{self.weights.path.name} as {stored.dtype} {stored.shape}"
                )

    def call(self, model: ir.Model) -> PassResult:
        weights = _without_value(model)
        for value in weights:
            value.const_value = self.weights.external_tensor(str(value.name))
        return PassResult(model, bool(weights))


class DeclareBorders(InPlacePass):
    """Give inputs and outputs the contract's shapes, and every size the contract's symbol.

    Needs the contract's inputs and outputs, traced with its fixed sizes.

    Args:
        borders: The contract of the graph.
    """

    def __init__(self, borders: GraphSpec) -> None:
        self.borders = borders

    def requires(self, model: ir.Model) -> None:
        for side, tensors in (("inputs", self.borders.inputs), ("outputs", self.borders.outputs)):
            found = {str(value.name): value.shape for value in getattr(model.graph, side)}
            if list(found) != [tensor.name for tensor in tensors]:
                raise PreconditionError(f"traced {side} are {list(found)}, not the contract's")
            for tensor in tensors:
                traced = found[tensor.name]
                if traced is None or not _fits(traced, tensor.shape):
                    raise PreconditionError(f"{tensor.name}: traced {traced}, expected {tensor.shape}")

    def call(self, model: ir.Model) -> PassResult:
        values = [*model.graph.inputs, *model.graph.outputs]
        declared = [tensor.shape for tensor in (*self.borders.inputs, *self.borders.outputs)]
        symbols = {
            str(traced): symbol
            for value, shape in zip(values, declared, strict=True)
            for traced, symbol in zip(value.shape or (), shape, strict=True)
            if isinstance(symbol, str) and symbol.isidentifier()
        }
        for node in model.graph:
            for output in node.outputs:
                output.shape = _renamed(output.shape, symbols)
        for value, shape in zip(values, declared, strict=True):
            value.shape = ir.Shape(shape)
        return PassResult(model, modified=True)


class DefineStarOps(InPlacePass):
    """Import the ``star`` domain and add the function bodies of its operators that the graph calls.

    Leaves a model that a runtime without the plugin can run.
    """

    def call(self, model: ir.Model) -> PassResult:
        model.opset_imports[STAR_DOMAIN] = STAR_DOMAIN_VERSION
        if _star_calls(model):
            function = topk_gather_function()
            model.functions[function.identifier()] = function
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        for call in _star_calls(model):
            if call.op_identifier() not in model.functions:
                raise PostconditionError(f"{call.op_type} has no function body")


class NameNodes(InPlacePass):
    """Put the module that a node comes from before its name: ``language_model.layers.0.mlp/node_silu``.

    Needs the metadata that the tracer leaves on nodes.
    """

    def requires(self, model: ir.Model) -> None:
        if not any(_SCOPES in node.metadata_props for node in model.graph):
            raise PreconditionError("no node says its module; name nodes before metadata is cleared")

    def call(self, model: ir.Model) -> PassResult:
        for node in model.graph:
            if (module := module_of(node)) not in ("", "rotary"):
                node.name = f"{module}/{node.name}"
        return PassResult(model, modified=True)


class NameModel(InPlacePass):
    """Say which graph it is and who made it, in place of the tracer.

    Args:
        graph: ``vision``, ``prefill`` or ``decode``.
    """

    def __init__(self, graph: str) -> None:
        self.graph = graph

    def call(self, model: ir.Model) -> PassResult:
        model.producer_name, model.producer_version = "star-export", None
        model.graph.name = self.graph
        for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
            value.metadata_props.clear()
        return PassResult(model, modified=True)


def module_of(node: ir.Node) -> str:
    """Name of the module in whose ``forward`` the tracer met a node; empty for the graph's own."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))  # from the graph itself to the operator
    return str(scopes[-2]) if len(scopes) > 2 else ""


def _is_fake(value: ir.Value) -> bool:
    return value.const_value is not None and isinstance(value.const_value.raw, nn.Parameter | nn.Buffer)


def _without_value(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.initializers.values() if value.const_value is None]


def _later_lengths(model: ir.Model) -> list[ir.Value]:
    """The inputs that count the cached tokens of every layer group but the first."""
    return [value for value in model.graph.inputs if is_lengths(str(value.name))][1:]


def _star_calls(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == STAR_DOMAIN]


def _int64(name: str, shape: ir.Shape | None, *, value: list[int] | None = None) -> ir.Value:
    dtype = ir.DataType.INT64
    tensor = None if value is None else ir.tensor(value, dtype=dtype, name=name)
    return ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)


def _fits(traced: ir.Shape, declared: tuple[int | str, ...]) -> bool:
    """Whether ranks and fixed sizes agree."""
    return len(traced) == len(declared) and all(
        isinstance(size, str) or size == found for found, size in zip(traced, declared, strict=True)
    )


def _renamed(shape: ir.Shape | None, symbols: dict[str, str]) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape(
        dim if isinstance(dim, int) else re.sub(r"\w+", lambda m: symbols.get(m[0], m[0]), str(dim))
        for dim in shape
    )
