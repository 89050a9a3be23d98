"""torch -> ONNX: the three graphs of a bundle.

Modules are built and exported under fake tensors, so no weight is in memory
while the graph is traced; afterwards every initializer is pointed at its bytes
in a weights file.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from star_export.contract import (
    DECODE,
    PREFILL,
    STAGE1_DROPS,
    STAGE1_SLOTS,
    VISION,
    GraphSpec,
    TensorSpec,
    capacity_symbols,
    contract,
    is_lengths,
    is_slots,
)
from star_export.graphs.alike import RepeatLayers, leave_out, without_caches
from star_export.graphs.decoder import DecodeGraph, PrefillGraph
from star_export.graphs.layers import Linear
from star_export.graphs.ops import OPSET
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
from star_export.graphs.quantize import QuantizeWeights
from star_export.graphs.vision import TiledVisionGraph, VisionGraph
from star_export.graphs.weights import WeightsFile, torch_dtype
from star_export.specs import ExportSpec


def vision_graph(spec: ExportSpec) -> nn.Module:
    """The vision graph of a family."""
    return TiledVisionGraph(spec) if spec.model.tiling else VisionGraph(spec)


#: Where the layers of each graph are.
STACKS = {VISION: "vision_tower.encoder.layers"} | dict.fromkeys((PREFILL, DECODE), "language_model.layers")

MODULES: dict[str, Callable[[ExportSpec], nn.Module]] = {
    VISION: vision_graph,
    PREFILL: PrefillGraph,
    DECODE: DecodeGraph,
}


def fake_module(graph: str, spec: ExportSpec) -> nn.Module:
    """The module of ``graph`` with parameters that have shapes and no memory."""
    with _fake(spec):
        return _module(graph, spec)


def layer_names(spec: ExportSpec) -> list[str]:
    """Name of every module of the three graphs that has weights, as in a checkpoint."""
    modules = [fake_module(graph, spec) for graph in (VISION, DECODE)]
    names = [name.rpartition(".")[0] for module in modules for name, _ in module.named_parameters()]
    return [*names, "lm_head"] if spec.shared_head else names


def linear_layers(spec: ExportSpec) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every linear layer of the three graphs, by its name."""
    modules = [fake_module(graph, spec) for graph in (VISION, DECODE)]
    layers = [item for module in modules for item in module.named_modules()]
    return {
        name: (layer.weight.shape[1], layer.weight.shape[0])
        for name, layer in layers
        if isinstance(layer, Linear)
    }


def export_graph(graph: str, spec: ExportSpec, weights: WeightsFile, path: Path) -> None:
    """Export one graph and save it beside its weights file.

    Args:
        graph: ``vision``, ``prefill`` or ``decode``.
        spec: What to export.
        weights: The file that holds every parameter of the graph.
        path: The ``.onnx`` file to write, in the folder of ``weights``.
    """
    borders = contract(spec)[graph]
    model, gaps = _trace(graph, spec, borders)
    passes = Sequential(
        DetachWeights(),
        Optimize(),
        RepeatLayers(STACKS[graph], gaps, borders),
        QuantizeWeights(spec),
        DetachLengths(),
        AttachWeights(weights),
        DeclareBorders(borders),
        DefineStarOps(),
        NameNodes(),
        ClearMetadataAndDocStringPass(),
        NameModel(graph),
    )
    with _quiet():
        passes(model)
    ir.save(model, path)


def _trace(graph: str, spec: ExportSpec, borders: GraphSpec) -> tuple[ir.Model, list[range]]:
    """The graph of a module's layers that need tracing, and the numbers of the others."""
    with _fake(spec), _quiet():
        module = _module(graph, spec).eval()
        gaps = leave_out(module.get_submodule(STACKS[graph]), _ends(graph, spec))
        borders = without_caches(borders, gaps)
        program = _captured(module, spec, borders)
        decompose = program.run_decompositions

        def where_needed(table: dict[Any, Any]) -> torch.export.ExportedProgram:
            return decompose(table) if any(node.target in table for node in program.graph.nodes) else program

        # Decomposing traces twice more, and is left out where ONNX has all operators.
        program.run_decompositions = where_needed
        try:
            return _to_onnx(program, borders), gaps
        except torch.onnx.OnnxExporterError:  # it lacks one that the table takes for its own
            program.run_decompositions = decompose
            return _to_onnx(program, borders), gaps


def _to_onnx(program: torch.export.ExportedProgram, borders: GraphSpec) -> ir.Model:
    """The graph of a traced module."""
    made = torch.onnx.export(
        program,
        input_names=[tensor.name for tensor in borders.inputs],
        output_names=[tensor.name for tensor in borders.outputs],
        opset_version=OPSET,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert made is not None
    return made.model


def _captured(module: nn.Module, spec: ExportSpec, borders: GraphSpec) -> torch.export.ExportedProgram:
    """The traced module."""
    return torch.export.export(
        module,
        (),
        _forward_arguments(borders, lambda tensor: _example(tensor, spec)),
        dynamic_shapes=_forward_arguments(borders, lambda tensor: _dynamic_dims(tensor, spec)),
    )


def _ends(graph: str, spec: ExportSpec) -> set[int]:
    """How many layers come before each place between two of them where the graph does something else."""
    vision = spec.model.vision
    if graph == VISION:  # the last layer may give its map
        return {vision.num_layers - 1, *vision.feature_layers}
    return {stage.after_layer for stage in spec.decoder_stages}


def _module(graph: str, spec: ExportSpec) -> nn.Module:
    """The module of ``graph``, its parameters in the element types of ``spec``."""
    module = MODULES[graph](spec)
    for name, parameter in module.named_parameters():
        parameter.data = parameter.to(torch_dtype(spec.weight_dtype(name)))
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
    if name.startswith("past_key_"):
        return name.partition(".")[0]
    if is_lengths(name):
        return "lengths"
    return "stage_slots" if is_slots(name) and name not in (STAGE1_SLOTS, STAGE1_DROPS) else None


def _example(tensor: TensorSpec, spec: ExportSpec) -> torch.Tensor:
    """A fake input. The sizes only have to be possible: each symbolic one stays symbolic."""
    sizes = {
        "B": 2,
        "C": 3,
        "D1": 7,
        "P": spec.model.vision.tile_tokens + 11,
        "T": 2,
        "S": spec.image_tokens + spec.max_text_tokens + 3,
        "V": spec.image_tokens + 1,
        "Q": 5,
        "N1": spec.image_tokens + 1,
        **{name: spec.capacities[0] - n for n, name in enumerate(capacity_symbols(spec))},
        **{f"N{number}": tokens + 1 for number, tokens in enumerate(spec.budgets(), start=2)},
    }
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
    return torch.empty(shape, dtype=torch_dtype(tensor.dtype))


def _dynamic_dims(tensor: TensorSpec, spec: ExportSpec) -> dict[int, Any]:
    """Symbolic sizes; the caches of a layer group have one, so that layers that are alike look so."""
    shared = {name: Dim(name) for name in capacity_symbols(spec)}
    return {
        axis: shared.get(dim, Dim.DYNAMIC) for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)
    }


@contextmanager
def _fake(spec: ExportSpec) -> Iterator[None]:
    """Tensors made inside have shapes and no memory, parameters the dtype of ``spec``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch_dtype(spec.dtype))
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
