"""Names, order, dtypes and shapes of the three graphs' borders."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from star_export.build import BuildOptions, resolve_spec
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.contract import (
    DECODE,
    PREFILL,
    VISION,
    GraphSpec,
    SizeRange,
    TensorSpec,
    contract,
    decoder_slots,
    is_lengths,
    is_slots,
    kept_names,
    lengths_names,
    size_ranges,
)
from star_export.specs import DType, ExportSpec, ModelSpec, Stage, resolve_images, resolve_star
from star_export.typed import convert
from tests.shapes import NEXT, ONEVISION

Row = tuple[str, str, tuple[int | str, ...]]

# The "gqa" checkpoint: 4 layers, K = 2, 2 KV heads of 16; 576 patches, N1 = 518.
EARLY, LATE, FULL = 518 + 128 + 32, 288 + 128 + 32, 576 + 128 + 32


@pytest.fixture(scope="module")
def spec(checkpoint: Callable[[str], Path]) -> Callable[..., ExportSpec]:
    opened = open_checkpoint(str(checkpoint("gqa")))

    def resolve(*, prune: bool = True, dtype: DType = "float32") -> ExportSpec:
        pruning = {"keep": 64, "max_keep": 288} if prune else {}
        options: dict[str, Any] = {"max_text_tokens": 128, "max_new_tokens": 32, "dtype": dtype, **pruning}
        return resolve_spec(BuildOptions(model="x", output=Path("x"), prune=prune, **options), opened)

    return resolve


def rows(tensors: tuple[TensorSpec, ...]) -> list[Row]:
    return [(t.name, t.dtype, t.shape) for t in tensors]


def caches(
    prefix: str, batch: int | str, capacities: Sequence[int | str], dtype: str = "float32"
) -> list[Row]:
    return [
        (f"{prefix}.{layer}.{part}", dtype, (batch, 2, capacity, 16))
        for layer, capacity in enumerate(capacities)
        for part in ("key", "value")
    ]


def test_vision_pruned(spec: Callable[..., ExportSpec]) -> None:
    graph = contract(spec(dtype="float16"))[VISION]
    assert rows(graph.inputs) == [
        ("pixel_values", "float16", (1, 3, 336, 336)),
        ("stage1_slots", "int64", ("N1",)),
    ]
    assert rows(graph.outputs) == [
        ("image_features", "float16", (1, "N1", 128)),
        ("image_indices", "int64", (1, "N1")),
    ]


def test_vision_unpruned(spec: Callable[..., ExportSpec]) -> None:
    graph = contract(spec(prune=False))[VISION]
    assert rows(graph.inputs) == [("pixel_values", "float32", (1, 3, 336, 336))]
    assert rows(graph.outputs) == [("image_features", "float32", (1, 576, 128))]


def test_prefill_pruned(spec: Callable[..., ExportSpec]) -> None:
    graph = contract(spec(dtype="float16"))[PREFILL]
    capacities = ["L1", "L1", "L2", "L2"]
    assert rows(graph.inputs) == [
        ("input_ids", "int64", (1, "S")),
        ("image_features", "float16", (1, "V", 128)),
        ("image_positions", "int64", (1, "V")),
        ("query_positions", "int64", (1, "Q")),
        ("stage2_slots", "int64", ("N2",)),
        *caches("past_key_values", 1, capacities, "float16"),
    ]
    assert rows(graph.outputs) == [
        ("logits", "float32", (1, 512)),
        ("kept_positions", "int64", (1, "S - V + N2")),
        *caches("present", 1, capacities, "float16"),
    ]


def test_prefill_unpruned(spec: Callable[..., ExportSpec]) -> None:
    graph = contract(spec(prune=False))[PREFILL]
    assert rows(graph.inputs) == [
        ("input_ids", "int64", (1, "S")),
        ("image_features", "float32", (1, "V", 128)),
        ("image_positions", "int64", (1, "V")),
        *caches("past_key_values", 1, ["L1"] * 4),
    ]
    assert rows(graph.outputs) == [("logits", "float32", (1, 512)), *caches("present", 1, ["L1"] * 4)]


@pytest.mark.parametrize(
    ("prune", "groups", "capacities"),
    [
        (True, ["early_lengths", "late_lengths"], ["L1", "L1", "L2", "L2"]),
        (False, ["early_lengths"], ["L1"] * 4),
    ],
)
def test_decode(
    spec: Callable[..., ExportSpec], prune: bool, groups: list[str], capacities: list[str]
) -> None:
    graph = contract(spec(prune=prune))[DECODE]
    assert rows(graph.inputs) == [
        ("input_ids", "int64", ("B", "C")),
        ("position_ids", "int64", ("B", "C")),
        *((name, "int64", ("B",)) for name in groups),
        *caches("past_key_values", "B", capacities),
    ]
    assert rows(graph.outputs) == [("logits", "float32", ("B", 512)), *caches("present", "B", capacities)]


def test_three_stages(spec: Callable[..., ExportSpec]) -> None:
    stages = [
        Stage(after_layer=layer, score="text", tokens=tokens, max_tokens=tokens)
        for layer, tokens in ((1, 200), (2, 100), (3, 50))
    ]
    three = replace(spec(), schedule=tuple(stages))
    prefill, decode = contract(three)[PREFILL], contract(three)[DECODE]
    assert rows(contract(three)[VISION].outputs) == [("image_features", "float32", (1, 576, 128))]
    assert rows(prefill.inputs)[3:] == [
        ("query_positions", "int64", (1, "Q")),
        ("stage2_slots", "int64", ("N2",)),
        ("stage3_slots", "int64", ("N3",)),
        ("stage4_slots", "int64", ("N4",)),
        *caches("past_key_values", 1, ["L1", "L2", "L3", "L4"]),
    ]
    capacities = [tokens + 128 + 32 for tokens in (576, 200, 100, 50)]
    assert [size_ranges(three)[f"L{n}"].max for n in (1, 2, 3, 4)] == capacities
    assert rows(prefill.outputs)[1:4] == [
        ("stage2_positions", "int64", (1, "S - V + N2")),
        ("stage3_positions", "int64", (1, "S - V + N3")),
        ("kept_positions", "int64", (1, "S - V + N4")),
    ]
    names = ("early_lengths", "group2_lengths", "group3_lengths", "late_lengths")
    assert lengths_names(three) == names
    assert [t.name for t in decode.inputs if is_lengths(t.name)] == [*names]
    assert [t.name for t in prefill.inputs if is_slots(t.name)] == [*decoder_slots(three)]
    assert kept_names(three) == tuple(t.name for t in prefill.outputs[1:4])


@pytest.mark.parametrize("graph", [PREFILL, DECODE])
def test_caches_are_written_in_place(spec: Callable[..., ExportSpec], graph: str) -> None:
    borders = contract(spec())[graph]
    past = [t.name for t in borders.inputs if t.name.startswith("past")]
    present = [t.name for t in borders.outputs if t.name.startswith("present")]
    assert list(borders.aliases.items()) == list(zip(present, past, strict=True))
    assert list(borders.caches()) == past
    plain = borders.plain_inputs, borders.plain_outputs
    assert plain == (list(borders.inputs[: -len(past)]), list(borders.outputs[: -len(past)]))


def test_roles(spec: Callable[..., ExportSpec]) -> None:
    tensors = [t for io in contract(spec()).values() for t in (*io.inputs, *io.outputs)]
    assert [t.name for t in tensors if t.role] == ["stage1_slots", "stage2_slots"]


def test_size_ranges(spec: Callable[..., ExportSpec]) -> None:
    ranges = {name: (size.min, size.max, size.default) for name, size in size_ranges(spec()).items()}
    assert ranges == {
        "B": (1, None, None),
        "C": (1, 64, None),
        "S": (2, 518 + 128, None),
        "V": (1, 518, 518),
        "N1": (1, 518, 518),
        "Q": (1, 128, None),
        "N2": (1, 288, 64),
        "L1": (1, EARLY, EARLY),
        "L2": (1, LATE, LATE),
    }
    unpruned = size_ranges(spec(prune=False))
    assert unpruned.keys() == {"B", "C", "S", "V", "L1"}
    assert (unpruned["V"].default, unpruned["L1"].default) == (576, FULL)


def test_old_bundles_have_numbers_for_capacities(spec: Callable[..., ExportSpec]) -> None:
    old = replace(spec(), fixed_capacities=True)
    assert rows(contract(old)[DECODE].inputs)[4:] == caches(
        "past_key_values", "B", [EARLY, EARLY, LATE, LATE]
    )
    assert not size_ranges(old).keys() & {"L1", "L2"}


def tiled(model: ModelSpec, *, prune: bool = True, append_tokens: int = 64) -> ExportSpec:
    images = resolve_images(model, room=30000, max_tiles=5)
    return ExportSpec(
        model=model, schedule=resolve_star(model, images) if prune else (), images=images,
        max_text_tokens=100, max_new_tokens=50, append_tokens=append_tokens, dtype="float16",
    )  # fmt: skip


@pytest.mark.parametrize("prune", [True, False])
def test_vision_of_a_picture_in_tiles(prune: bool) -> None:
    graph, kept = contract(tiled(NEXT, prune=prune))[VISION], "P - D1" if prune else "P"
    drops = [TensorSpec("stage1_drops", "int64", ("D1",), "length")]
    indices = [TensorSpec("image_indices", "int64", (1, "P - D1"))]
    assert graph.inputs == (
        TensorSpec("pixel_values", "float16", ("T", 3, 336, 336)),
        TensorSpec("packed_index", "int64", ("P",)),
        *(drops if prune else []),
    )
    assert graph.outputs == (
        TensorSpec("image_features", "float16", (1, kept, 4096)),
        *(indices if prune else []),
    )


def test_a_number_of_tokens_of_a_picture_in_tiles() -> None:
    stage = Stage(after_layer=0, score="spread", tokens=128, max_tokens=128)
    counted = replace(tiled(NEXT), schedule=(stage,))
    graph = contract(counted)[VISION]
    assert graph.inputs[2:] == (TensorSpec("stage1_slots", "int64", ("N1",), "length"),)
    assert [tensor.shape for tensor in graph.outputs] == [(1, "N1", 4096), (1, "N1")]
    ranges = {name: (size.min, size.max, size.default) for name, size in size_ranges(counted).items()}
    assert (ranges["N1"], ranges["V"], ranges["S"]) == ((1, 128, 128), (1, 128, None), (2, 228, None))
    assert not ranges.keys() & {"D1", "Q", "N2"}


@pytest.mark.parametrize("prune", [True, False])
def test_vision_of_a_picture_that_may_be_scaled_down(prune: bool) -> None:
    inputs = contract(tiled(ONEVISION, prune=prune))[VISION].inputs
    assert rows(inputs)[:3] == [
        ("pixel_values", "float16", ("T", 3, 384, 384)),
        ("packed_index", "int64", ("P", 4)),
        ("packed_weights", "float32", ("P", 4)),
    ]
    assert [tensor.name for tensor in inputs[3:]] == (["stage1_drops"] if prune else [])


def test_size_ranges_of_a_picture_in_tiles() -> None:
    ranges = {name: (size.min, size.max, size.default) for name, size in size_ranges(tiled(NEXT)).items()}
    assert ranges == {
        "B": (1, None, None),
        "C": (1, 64, None),
        "T": (1, 5, None),
        "P": (576, 2928, None),
        "D1": (1, 2927, None),
        "V": (1, 2640, None),
        "S": (2, 2740, None),
        "Q": (1, 100, None),
        "N2": (1, 320, 320),
        "L1": (1, 2640 + 150, 2640 + 150),
        "L2": (1, 320 + 150, 320 + 150),
    }
    unpruned = size_ranges(tiled(NEXT, prune=False))
    assert unpruned.keys() == {"B", "C", "T", "P", "V", "S", "L1"}
    assert unpruned["P"] == unpruned["V"] == SizeRange(min=576, max=2928)


def test_a_bundle_that_appends_one_token_at_a_time_has_no_size_for_it() -> None:
    alone = tiled(NEXT, append_tokens=1)
    assert "C" not in size_ranges(alone)
    assert rows(contract(alone)[DECODE].inputs)[:2] == [
        ("input_ids", "int64", ("B", 1)),
        ("position_ids", "int64", ("B", 1)),
    ]


def test_manifest_form_is_json() -> None:
    inputs = TensorSpec("a", "int64", (1, "S - V")), TensorSpec("b", "int64", ("N1",), "length")
    graph = GraphSpec(inputs, (TensorSpec("c", "float32", ()),), {"c": "a"})
    values = json.loads(json.dumps(graph.to_dict()))
    assert values == {
        "inputs": [
            {"name": "a", "dtype": "int64", "shape": [1, "S - V"]},
            {"name": "b", "dtype": "int64", "shape": ["N1"], "role": "length"},
        ],
        "outputs": [{"name": "c", "dtype": "float32", "shape": []}],
        "aliases": {"c": "a"},
    }
    assert convert(values, GraphSpec) == graph
    for size in (SizeRange(min=1, max=None), SizeRange(min=1, max=3, default=2)):
        assert convert(size.to_dict(), SizeRange) == size
