"""Shapes, dtypes and aliases are checked before TensorRT is asked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from star_export.build import BuildOptions, resolve_spec
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.contract import DECODE, PREFILL, VISION, capacity_symbols, contract
from star_export.dtypes import DTYPES
from star_export.engines.tensorrt.facts import Profile, Shape
from star_export.engines.tensorrt.profiles import engine_profiles
from star_export.engines.tensorrt.shapes import EngineTensor, ShapeRules, check_engine
from star_export.errors import BundleError, SettingsError
from star_export.specs import ExportSpec

VISUAL, TEXT, KEEP, BATCH = 518, 128, 288, 4


@pytest.fixture(scope="module")
def spec(checkpoint: Callable[[str], Path]) -> ExportSpec:
    opened = open_checkpoint(str(checkpoint("mha")))
    options = BuildOptions(
        model="x", output=Path("x"), keep=64, max_keep=KEEP, max_text_tokens=TEXT, max_new_tokens=32,
        dtype="float16",
    )  # fmt: skip
    return resolve_spec(options, opened)


def rules(spec: ExportSpec, graph: str) -> ShapeRules:
    profiles = engine_profiles(spec, max_batch=BATCH)[graph]
    return ShapeRules(graph, contract(spec)[graph], profiles, "star-export build --from-bundle b")


def shapes(spec: ExportSpec, graph: str, **sizes: int) -> dict[str, Shape]:
    sizes = dict(zip(capacity_symbols(spec), spec.capacities, strict=True)) | sizes
    return {
        tensor.name: tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        for tensor in contract(spec)[graph].inputs
    }


def test_symbolic_sizes_and_output_shapes(spec: ExportSpec) -> None:
    prefill = rules(spec, PREFILL)
    sizes = prefill.check(shapes(spec, PREFILL, S=560, V=VISUAL, Q=9, N2=64))
    assert sizes == {"S": 560, "V": VISUAL, "Q": 9, "N2": 64, "L1": 678, "L2": 448}
    outputs = prefill.output_shapes(sizes)
    assert outputs["logits"] == (1, spec.model.text.vocab_size)
    assert outputs["kept_positions"] == (1, 560 - VISUAL + 64)
    late = spec.model.text.num_layers - 1
    assert outputs[f"present.{late}.key"] == (1, 4, spec.groups[-1].capacity, spec.model.text.head_dim)


@pytest.mark.parametrize(
    ("graph", "sizes", "message"),
    [
        (
            PREFILL,
            {"N2": 289},
            r"prefill: stage2_slots has shape \(289,\), the engine takes \(1,\) to \(288,\)",
        ),
        (PREFILL, {"S": VISUAL + TEXT + 1}, r"prefill: input_ids has shape \(1, 647\), .* to \(1, 646\)"),
        (PREFILL, {"S": 1}, r"prefill: input_ids has shape \(1, 1\), the engine takes \(1, 2\)"),
        (PREFILL, {"Q": 0}, r"prefill: query_positions has shape \(1, 0\)"),
        (PREFILL, {"V": 519}, r"prefill: image_features has shape \(1, 519, 64\)"),
        (DECODE, {"B": 5}, r"decode: input_ids has shape \(5, 1\), the engine takes \(1, 1\) to \(4, 64\)"),
        (DECODE, {"L2": 447}, r"decode: past_key_values.3.key has shape \(2, 4, 447, 16\), the engine"),
        (DECODE, {"C": 65}, r"decode: input_ids has shape \(2, 65\), the engine takes \(1, 1\) to \(4, 64\)"),
    ],
)
def test_outside_the_profile(spec: ExportSpec, graph: str, sizes: dict[str, int], message: str) -> None:
    good = {"S": 560, "V": VISUAL, "Q": 9, "N2": 64, "B": 2, "C": 1}
    rules(spec, graph).check(shapes(spec, graph, **good))
    with pytest.raises(SettingsError, match=f"^{message}.*build the engines again: star-export build --from"):
        rules(spec, graph).check(shapes(spec, graph, **good | sizes))


def test_inputs_that_contradict_each_other(spec: ExportSpec) -> None:
    decode = rules(spec, DECODE)
    wrong = shapes(spec, DECODE, B=2, C=1) | {"late_lengths": (3,)}
    with pytest.raises(SettingsError, match=r"^decode: late_lengths must be \(2,\), got \(3,\)$"):
        decode.check(wrong)
    with pytest.raises(SettingsError, match=r"^decode: late_lengths must be \(2,\), got \(2, 1\)$"):
        decode.check(wrong | {"late_lengths": (2, 1)})
    with pytest.raises(SettingsError, match=r"^decode takes .*got"):
        decode.check({"input_ids": (2, 1)})


def test_largest_buffers(spec: ExportSpec) -> None:
    sizes = {t.name: rules(spec, PREFILL).largest(t) for t in contract(spec)[PREFILL].outputs[:2]}
    # Text tokens at most, visual ones at least subtracted, the largest budget added.
    assert sizes == {
        "logits": 4 * spec.model.text.vocab_size,
        "kept_positions": 8 * (VISUAL + TEXT - 1 + KEEP),
    }
    pixels, slots = contract(spec)[VISION].inputs
    vision = rules(spec, VISION)
    assert vision.largest(pixels) == 2 * 3 * 96 * 96
    assert vision.largest(slots) == 8 * VISUAL
    logits = contract(spec)[DECODE].outputs[0]
    assert rules(spec, DECODE).largest(logits) == 4 * BATCH * spec.model.text.vocab_size


def test_what_is_subtracted_counts_at_its_smallest(spec: ExportSpec) -> None:
    """A picture of 100 to 518 tokens: the longest output belongs to the smallest."""
    prefill, kept = rules(spec, PREFILL), contract(spec)[PREFILL].outputs[1]
    wide = Profile((1, 100), (1, VISUAL), (1, VISUAL))
    profiles = {**prefill.profiles, "image_positions": wide}
    del profiles["image_features"]
    assert replace(prefill, profiles=profiles).largest(kept) == 8 * (VISUAL + TEXT - 100 + KEEP)


def test_a_range_that_the_manifest_lacks(spec: ExportSpec) -> None:
    bare = replace(rules(spec, VISION), profiles={})
    with pytest.raises(
        BundleError, match="no range for 'N1' of vision's stage1_slots; build the engines again"
    ):
        bare.largest(contract(spec)[VISION].inputs[1])


def engine_of(spec: ExportSpec) -> dict[str, EngineTensor]:
    """The decode engine that the contract describes."""
    io = contract(spec)[DECODE]
    return {
        tensor.name: EngineTensor(
            is_input=tensor in io.inputs,
            dtype=DTYPES[tensor.dtype].tensorrt,
            shape=tuple(-1 if isinstance(dim, str) else dim for dim in tensor.shape),
            alias=io.aliases.get(tensor.name),
            on_host=False,
        )
        for tensor in (*io.inputs, *io.outputs)
    }


def check(spec: ExportSpec, found: dict[str, EngineTensor]) -> None:
    check_engine(found, contract(spec)[DECODE], weights={}, engine="decode.engine", command="rebuild")


def test_the_contracts_engine_is_accepted(spec: ExportSpec) -> None:
    check(spec, engine_of(spec))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "present.3.key",
            {"alias": None},
            "writes present.3.key in place of None, not of past_key_values.3.key",
        ),
        (
            "present.3.key",
            {"alias": "past_key_values.3.value"},
            "in place of past_key_values.3.value, not of",
        ),
        ("logits", {"dtype": "HALF"}, "has logits in HALF, the contract says FLOAT"),
        ("input_ids", {"dtype": "INT32"}, "has input_ids in INT32, the contract says INT64"),
        ("logits", {"shape": (-1, 100)}, r"has logits as \(-1, 100\), the contract says \('B', 512\)"),
        ("logits", {"shape": (512,)}, r"has logits as \(512,\)"),
        ("late_lengths", {"is_input": False}, "has late_lengths as an output"),
    ],
)
def test_an_engine_unlike_the_contract(
    spec: ExportSpec, name: str, change: dict[str, object], message: str
) -> None:
    found = engine_of(spec)
    found[name] = replace(found[name], **change)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=f"^decode.engine .*{message}.*; build the engines again: rebuild$"):
        check(spec, found)


def test_tensors_missing_and_extra(spec: ExportSpec) -> None:
    found = engine_of(spec)
    removed = found.pop("late_lengths")
    with pytest.raises(BundleError, match="lacks late_lengths; build"):
        check(spec, found)
    with pytest.raises(BundleError, match="has new_input, the contract has not"):
        check(spec, {**found, "late_lengths": removed, "new_input": removed})
