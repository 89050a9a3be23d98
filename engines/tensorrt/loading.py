"""The engines of a bundle, from its files onto the GPU."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_export.bundle import Bundle
from star_export.contract import GRAPHS, TensorSpec
from star_export.engines.tensorrt import cuda
from star_export.engines.tensorrt.bindings import Bindings
from star_export.engines.tensorrt.engine import LoadedEngine, create_runtime, describe, deserialize
from star_export.engines.tensorrt.facts import EngineFacts, rebuild_command
from star_export.engines.tensorrt.shapes import ShapeRules, check_engine
from star_export.engines.tensorrt.weights import as_taken

#: Engines of one graph by the capacities of the KV caches that they take, the smallest first.
BySize = dict[tuple[int, ...], LoadedEngine]

log = logging.getLogger("star_export.tensorrt")


def share_budget(total: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of weights that each engine may keep on the GPU.

    Decode comes first: it reads all of its weights for every token, the others once per request.
    """
    budgets, left = {}, max(0, total)
    for graph in reversed(GRAPHS):
        budgets[graph] = min(sizes[graph], left)
        left -= budgets[graph]
    return budgets


def load_plugins(bindings: Bindings, facts: EngineFacts, library: Path | None) -> None:
    """Engines built with a plugin library need it to load; those with compiled-in kernels do not."""
    facts.check_library(library)
    if facts.plugins == "library" and library is not None:
        from star_export.engines.plugins import library as plugins

        plugins.load(bindings.trt, library, bindings.logger)


def load_engines(
    bundle: Bundle, facts: EngineFacts, bindings: Bindings, weights: Mapping[str, TensorSpec]
) -> dict[str, BySize]:
    """Deserialise every engine and compare it with the contract; ``weights`` are what it may also take.

    All of them, at once: what shares one scratch has to know the largest need, and a damaged engine
    shows before there are requests.
    """
    runtime, loaded = create_runtime(bindings, facts.version), dict[str, BySize]()
    for capacities, engines in facts.by_capacities(bundle.spec).items():
        for graph, file in engines.files.items():
            path, before = bundle.path(file), cuda.memory()[0]
            command = rebuild_command(bundle.folder, facts.backend)
            rules = ShapeRules(graph, bundle.contract[graph], engines.profiles[graph], command)
            loaded.setdefault(graph, {})[capacities] = _load(bindings, runtime, path, rules, weights)
            after = cuda.memory()[0]
            log.info("%s: %.2f GB of GPU memory free before, %.2f after", path, before / 1e9, after / 1e9)
    return loaded


def _load(
    bindings: Bindings, runtime: Any, path: Path, rules: ShapeRules, weights: Mapping[str, TensorSpec]
) -> LoadedEngine:
    engine = deserialize(bindings, runtime, path, command=rules.command)
    tensors = describe(engine, bindings.trt)
    taken = {n: as_taken(spec, tensors[n]) for n, spec in weights.items() if n in tensors}
    check_engine(tensors, rules.io, weights=taken, engine=str(path), command=rules.command)
    return LoadedEngine(bindings, runtime, engine, tensors, rules, tuple(taken))


def set_weight_budgets(engines: Mapping[str, LoadedEngine], total: int | None, *, reserve: int) -> None:
    """Divide the GPU's memory among the weights of all engines.

    TensorRT's automatic budget sees one engine: the first would take what the others need.
    """
    for loaded in engines.values():
        loaded.engine.weight_streaming_budget_v2 = 0
    sizes = {graph: int(loaded.engine.streamable_weights_size) for graph, loaded in engines.items()}
    room = cuda.memory()[0] - reserve if total is None else total
    for graph, budget in share_budget(room, sizes).items():
        engines[graph].engine.weight_streaming_budget_v2 = budget
        log.info("%s: %.2f of %.2f GB of weights on the GPU", graph, budget / 1e9, sizes[graph] / 1e9)
