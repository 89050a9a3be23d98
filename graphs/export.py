"""torch -> ONNX: the three graphs of a bundle.

Modules are built and exported under fake tensors, so no weight is in memory
while the graph is traced; afterwards every initializer is pointed at its bytes
in a weights file.
"""

import ast
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import optimizer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from star_export.contract import (
    DECODE,
    LATE_LENGTHS,
    PREFILL,
    STAGE1_SLOTS,
    STAR_DOMAIN,
    STAR_DOMAIN_VERSION,
    VISION,
    GraphSpec,
    TensorSpec,
    contract,
    is_lengths,
    is_slots,
)
from star_export.graphs.decoder import DecodeGraph, PrefillGraph
from star_export.graphs.ops import OPSET, topk_gather_function
from star_export.graphs.vision import VisionGraph
from star_export.graphs.weights import WeightsFile
from star_export.specs import ExportSpec

MODULES: dict[str, Callable[[ExportSpec], nn.Module]] = {
    VISION: VisionGraph,
    PREFILL: PrefillGraph,
    DECODE: DecodeGraph,
}

_TORCH_DTYPE = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}


def fake_module(graph: str, spec: ExportSpec) -> nn.Module:
    """The module of ``graph`` with parameters that have shapes and no memory."""
    with _fake(spec):
        return _module(graph, spec)


def layer_names(spec: ExportSpec) -> list[str]:
    """Name of every module of the three graphs that has weights, as in a checkpoint."""
    modules = [fake_module(graph, spec) for graph in (VISION, DECODE)]
    return [name.rpartition(".")[0] for module in modules for name, _ in module.named_parameters()]


def export_graph(graph: str, spec: ExportSpec, weights: WeightsFile, path: Path) -> None:
    """Export one graph and save it beside its weights file.

    Args:
        graph: ``vision``, ``prefill`` or ``decode``.
        spec: What to export.
        weights: The file that holds every parameter of the graph.
        path: The ``.onnx`` file to write, in the folder of ``weights``.
    """
    borders = contract(spec)[graph]
    model = _trace(graph, spec, borders)
    _detach_weights(model)
    with _quiet():
        optimizer.optimize_ir(model)
    _detach_late_lengths(model)
    _attach_weights(model, weights)
    _declare(model, borders)
    model.opset_imports[STAR_DOMAIN] = STAR_DOMAIN_VERSION
    if any(node.domain == STAR_DOMAIN for node in model.graph):
        function = topk_gather_function()
        model.functions[function.identifier()] = function
    _name_nodes(model)
    ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "star-export", None
    model.graph.name = graph
    ir.save(model, path)


def _trace(graph: str, spec: ExportSpec, borders: GraphSpec) -> ir.Model:
    with _fake(spec), _quiet():
        program = torch.onnx.export(
            _module(graph, spec).eval(),
            kwargs=_forward_arguments(borders, lambda tensor: _example(tensor, spec)),
            dynamic_shapes=_forward_arguments(borders, _dynamic_dims),
            input_names=[tensor.name for tensor in borders.inputs],
            output_names=[tensor.name for tensor in borders.outputs],
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return program.model


def _module(graph: str, spec: ExportSpec) -> nn.Module:
    """The module of ``graph``, its parameters in the element types of ``spec``."""
    module = MODULES[graph](spec)
    for name, parameter in module.named_parameters():
        parameter.data = parameter.to(_TORCH_DTYPE[spec.weight_dtype(name)])
    return module


def _forward_arguments(borders: GraphSpec, make: Callable[[TensorSpec], Any]) -> dict[str, Any]:
    """Keyword arguments of the module's ``forward``, one ``make(tensor)`` for each input."""
    arguments: dict[str, Any] = {}
    for tensor in borders.inputs:
        if (argument := _list_argument(tensor.name)) is not None:
            arguments.setdefault(argument, []).append(make(tensor))
        else:
            arguments[tensor.name] = make(tensor)
    return arguments


def _list_argument(name: str) -> str | None:
    """The argument that takes all inputs of a kind of which there may be several, if ``name`` is of one."""
    if name.startswith("past_key_values."):
        return "past_key_values"
    if is_lengths(name):
        return "lengths"
    return "stage_slots" if is_slots(name) and name != STAGE1_SLOTS else None


def _example(tensor: TensorSpec, spec: ExportSpec) -> torch.Tensor:
    """A fake input. The sizes only have to be possible: each symbolic one stays symbolic."""
    sizes = {
        "B": 2,
        "S": spec.image_tokens + spec.max_text_tokens + 3,
        "V": spec.image_tokens,
        "Q": 5,
        "N1": spec.image_tokens,
        **{f"N{number}": tokens + 1 for number, tokens in enumerate(spec.budgets(), start=2)},
    }
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
    return torch.empty(shape, dtype=_TORCH_DTYPE[tensor.dtype])


def _dynamic_dims(tensor: TensorSpec) -> dict[int, Any]:
    return {axis: Dim.DYNAMIC for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}


def _detach_weights(model: ir.Model) -> None:
    """Take the fake values away, so that the optimiser treats weights as unknown."""
    for value in model.graph.initializers.values():
        if value.const_value is not None and isinstance(value.const_value.raw, nn.Parameter | nn.Buffer):
            value.const_value = None


def _detach_late_lengths(model: ir.Model) -> None:
    """Let the last layers' write indices come out of a node instead of straight from an input.

    Two groups of TensorScatter whose indices are two graph inputs crash the builder of
    TensorRT-RTX 1.7.1 (a segmentation fault), whoever calls it; one addition of zero avoids
    that. Done after the optimiser, which would remove it.
    """
    late = next((value for value in model.graph.inputs if value.name == LATE_LENGTHS), None)
    if late is None:
        return
    zero = ir.Value(
        name="zero",
        shape=ir.Shape([1]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor([0], dtype=ir.DataType.INT64, name="zero"),
    )
    model.graph.register_initializer(zero)
    indices = ir.Value(name="late_write_indices", shape=late.shape, type=late.type)
    ir.convenience.replace_all_uses_with(late, indices)
    model.graph.insert_before(
        model.graph[0], ir.Node("", "Add", [late, zero], outputs=[indices], name="late")
    )


def _attach_weights(model: ir.Model, weights: WeightsFile) -> None:
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = weights.external_tensor(name)


def _name_nodes(model: ir.Model) -> None:
    """Put the module that a node comes from before its name: ``language_model.layers.0.mlp/node_silu``."""
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        if len(scopes) > 2 and scopes[-2] != "rotary":  # from the graph itself to the operator
            node.name = f"{scopes[-2]}/{node.name}"


def _declare(model: ir.Model, borders: GraphSpec) -> None:
    """Give inputs and outputs the contract's shapes, and every size the contract's symbol."""
    symbols: dict[str, str] = {}
    pairs = [
        *zip(model.graph.inputs, borders.inputs, strict=True),
        *zip(model.graph.outputs, borders.outputs, strict=True),
    ]
    for value, tensor in pairs:
        assert value.name == tensor.name
        assert value.shape is not None
        for traced, declared in zip(value.shape, tensor.shape, strict=True):
            if isinstance(declared, int):
                assert traced == declared, f"{tensor.name}: traced {value.shape}, expected {tensor.shape}"
            elif declared.isidentifier():
                symbols[str(traced)] = declared
    for node in model.graph:
        for output in node.outputs:
            output.shape = _renamed(output.shape, symbols)
    for value, tensor in pairs:
        value.shape = ir.Shape(tensor.shape)
        if is_lengths(tensor.name) or is_slots(tensor.name):  # traced under its number in a list
            value.metadata_props["pkg.torch.onnx.original_node_name"] = tensor.name


def _renamed(shape: ir.Shape | None, symbols: dict[str, str]) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape(
        dim if isinstance(dim, int) else re.sub(r"\w+", lambda m: symbols.get(m[0], m[0]), str(dim))
        for dim in shape
    )


@contextmanager
def _fake(spec: ExportSpec) -> Iterator[None]:
    """Tensors made inside have shapes and no memory, parameters the dtype of ``spec``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(_TORCH_DTYPE[spec.dtype])
    try:
        with FakeTensorMode(), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about fake weights; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
