"""Whether what a manifest says makes sense: its parts agree, and its graphs can be run as the steps run them.

Everything here raises ValueError with the path of the value, what was expected and what was found.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from star_export.contract import (
    CacheGroup,
    GraphSpec,
    SizeRange,
    TensorSpec,
    cache_groups,
    contract,
    size_ranges,
)
from star_export.specs import ExportSpec, check_capacities, check_images, check_proportional, check_schedule


def check_spec(spec: ExportSpec) -> None:
    """Refuse values that contradict each other: they would fail, or answer nonsense, much later.

    Raises:
        SettingsError: If the schedule or the capacities are impossible.
    """
    model = spec.model
    vision, text = model.vision, model.text
    if not vision.grid_side:
        raise ValueError(f"spec.model.vision: {vision.image_size} px are no whole patch")
    if max(vision.feature_layers, default=0) != vision.num_layers:
        raise ValueError(
            f"spec.model.vision.feature_layers: {vision.feature_layers} of {vision.num_layers} layers"
        )
    if text.num_heads % text.num_kv_heads:
        raise ValueError(f"spec.model.text: {text.num_heads} heads cannot share {text.num_kv_heads} KV heads")
    if model.image_token_id >= text.vocab_size:
        raise ValueError(f"spec.model.image_token_id: {model.image_token_id} is outside the vocabulary")
    check_images(spec.images, model)
    check_schedule(spec.schedule, model, spec.images)
    check_proportional(spec)
    check_capacities(spec)


def check_groups(groups: Sequence[CacheGroup], spec: ExportSpec) -> None:
    """Refuse groups that leave out layers, overlap, end elsewhere than the stages, or have another room."""
    needed = cache_groups(spec)
    if len(groups) != len(needed):
        raise ValueError(f"groups: expected {len(needed)} groups, found {len(groups)}")
    for index, (expected, found) in enumerate(zip(needed, groups, strict=True)):
        for key, value in asdict(expected).items():
            agree(f"groups[{index}].{key}", value, getattr(found, key))


def check_sizes(sizes: Mapping[str, SizeRange], spec: ExportSpec) -> None:
    """Refuse empty ranges, budgets that are not the stages', and prompts that the caches have no room for."""
    _check_names("sizes", size_ranges(spec), sizes)
    for name, size in sizes.items():
        default = size.min if size.default is None else size.default
        if not size.min <= default <= (default if size.max is None else size.max):
            raise ValueError(f"sizes.{name}: expected min <= default <= max, found {size.to_dict()}")
    for name, needed in size_ranges(spec).items():
        agree(f"sizes.{name}.default", needed.default, sizes[name].default)
        found = sizes[name].max
        if needed.max is not None and (found is None or found > needed.max):
            raise ValueError(f"sizes.{name}.max: expected at most {needed.max}, found {found}")


def check_contract(graphs: Mapping[str, GraphSpec], spec: ExportSpec) -> None:
    """Refuse graphs that lack a tensor which the steps feed or read, or have another.

    So every layer has its two caches in prefill and decode, written in place, of its group's capacity.
    """
    needed = contract(spec)
    _check_names("contract", needed, graphs)
    for graph, io in needed.items():
        path, found = f"contract.{graph}", graphs[graph]
        _check_tensors(f"{path}.inputs", io.inputs, found.inputs)
        _check_tensors(f"{path}.outputs", io.outputs, found.outputs)
        _check_names(f"{path}.aliases", io.aliases, found.aliases)
        for output, past in io.aliases.items():
            agree(f"{path}.aliases.{output}", past, found.aliases[output])


def _check_tensors(path: str, needed: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> None:
    """Their order is free: whoever runs a graph names them."""
    _check_names(path, [tensor.name for tensor in needed], [tensor.name for tensor in found])
    by_name = {tensor.name: tensor for tensor in found}
    for tensor in needed:
        agree(f"{path}.{tensor.name}", str(tensor), str(by_name[tensor.name]))


def _check_names(path: str, needed: Iterable[str], found: Iterable[str]) -> None:
    wanted, there = Counter(list(needed)), Counter(list(found))
    for name in wanted | there:
        agree(path, f"{wanted[name]} {name}", f"{there[name]} {name}")


def agree(path: str, expected: object, found: object) -> None:
    """Refuse a value that is not the expected one.

    Raises:
        ValueError: With both.
    """
    if expected != found:
        raise ValueError(f"{path}: expected {expected}, found {shortened(found)}")


def shortened(value: object) -> str:
    """A value for a message, of which nobody reads more than the beginning."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
