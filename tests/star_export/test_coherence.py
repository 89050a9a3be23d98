"""A manifest whose parts contradict each other, or whose graphs the steps cannot run, is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_export.bundle import open_bundle, write_manifest
from star_export.manifest import read_manifest
from star_export.specs import ExportSpec, resolve_images, resolve_star
from tests.shapes import ONEVISION

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(params=[True], ids=["pruned"])
def manifest(bundle: Callable[..., Path], request: pytest.FixtureRequest) -> dict[str, Any]:
    """The manifest of a bundle that prunes, unless a test asks for another; free to be changed."""
    return dict(json.loads(json.dumps(open_bundle(bundle("mha", prune=request.param)).manifest)))


def refused(manifest: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(manifest)


@pytest.mark.parametrize("manifest", [True, False], indirect=True)
def test_what_a_build_writes_is_coherent(manifest: dict[str, Any]) -> None:
    found = read_manifest(manifest)
    assert {graph: io.to_dict() for graph, io in found.contract.items()} == manifest["contract"]
    assert {name: size.to_dict() for name, size in found.sizes.items()} == manifest["sizes"]
    assert [group.lengths for group in found.groups] == [group["lengths"] for group in manifest["groups"]]


@pytest.mark.parametrize("graph", ["vision", "prefill", "decode"])
def test_tensors_may_come_in_any_order(manifest: dict[str, Any], graph: str) -> None:
    for side in ("inputs", "outputs"):
        manifest["contract"][graph][side].reverse()
    read_manifest(manifest)


def in_spec(*path: str, to: object) -> Change:
    """A change of one value of the spec."""

    def change(manifest: dict[str, Any]) -> None:
        place = manifest["spec"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


def in_stage(index: int, **values: object) -> Change:
    """A change of values of one stage."""
    return lambda manifest: manifest["spec"]["schedule"][index].update(values)


def in_group(index: int, **values: object) -> Change:
    """A change of values of one group."""
    return lambda manifest: manifest["groups"][index].update(values)


def in_tensor(graph: str, tensor: str, **values: object) -> Change:
    """A change of values of one tensor."""

    def change(manifest: dict[str, Any]) -> None:
        io = manifest["contract"][graph]
        next(t for t in io["inputs"] + io["outputs"] if t["name"] == tensor).update(values)

    return change


def in_size(name: str, **values: object) -> Change:
    """A change of values of one size."""
    return lambda manifest: manifest["sizes"][name].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_spec("model", "vision", "patch_size", to=97), "spec.model.vision: 96 px are no whole patch"),
        (in_spec("model", "text", "num_kv_heads", to=3), "4 heads cannot share 3 KV heads"),
        (in_spec("model", "image_token_id", to=512), "spec.model.image_token_id: 512 is outside"),
        (in_stage(0, tokens=577, max_tokens=577), "stage 1 keeps up to 577 tokens, expected at most 576"),
        (in_stage(1, after_layer=6), "spec: stage 2 comes after layer 6, expected 1 to 5"),
        (in_stage(1, tokens=289), "spec: stage 2 keeps 289 tokens, over its maximum of 288"),
        (in_stage(1, max_tokens=518), "spec: stage 2 keeps up to 518 tokens, expected at most 517"),
        (lambda m: m["spec"].update(proportional=True, schedule=[]), "spec: proportional has no meaning"),
        (in_spec("max_new_tokens", to=5000), "over the model's 2048 positions"),
        (lambda m: m.update(tie_rule="higher"), "tie_rule: expected equal scores keep .*, found higher"),
    ],
)
def test_a_spec_that_cannot_be(manifest: dict[str, Any], change: Change, message: str) -> None:
    change(manifest)
    refused(manifest, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["groups"].pop(), "groups: expected 2 groups, found 1$"),
        (lambda m: m["groups"].reverse(), r"groups\[0\].first: expected 0, found 3"),
        (in_spec("schedule", to=[]), "groups: expected 1 groups, found 2"),
        (in_group(0, last=3), r"groups\[0\].last: expected 2, found 3"),
        (in_group(1, first=4), r"groups\[1\].first: expected 3, found 4"),
        (in_group(1, last=4), r"groups\[1\].last: expected 5, found 4"),
        (in_group(1, capacity=1), r"groups\[1\].capacity: expected 448, found 1"),
        (in_group(1, lengths="early_lengths"), r"groups\[1\].lengths: expected late_lengths, found early"),
        (in_stage(1, after_layer=4), r"groups\[0\].last: expected 3, found 2"),
        (in_spec("max_text_tokens", to=127), r"groups\[0\].capacity: expected 677, found 678"),
        (in_group(0, lengths="x" * 99), r"groups\[0\].lengths: expected early_lengths, found x{77}\.\.\.$"),
    ],
)
def test_groups_that_are_not_the_schedules(manifest: dict[str, Any], change: Change, message: str) -> None:
    change(manifest)
    refused(manifest, message)


PAST, PRESENT = "past_key_values.3.key", "present.3.key"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["contract"].pop("vision"), "contract: expected 1 vision, found 0 vision"),
        (lambda m: m["contract"].update(x=m["contract"]["vision"]), "contract: expected 0 x, found 1 x"),
        (
            lambda m: m["contract"]["decode"]["inputs"].pop(),
            "contract.decode.inputs: expected 1 past_key_values.5.value, found 0 past",
        ),
        (
            lambda m: m["contract"]["prefill"]["outputs"].append(m["contract"]["prefill"]["outputs"][0]),
            "contract.prefill.outputs: expected 1 logits, found 2 logits",
        ),
        (in_tensor("decode", "late_lengths", name="x"), "inputs: expected 1 late_lengths, found 0 late"),
        (
            in_tensor("decode", "logits", dtype="float16"),
            r"decode.outputs.logits: expected float32\[B, 512\], found float16\[B, 512\]",
        ),
        (in_tensor("vision", "pixel_values", shape=[3, 96, 96]), r"expected float32\[1, 3, 96, 96\], found"),
        (in_tensor("prefill", "input_ids", shape=[1, "V"]), r"expected int64\[1, S\], found int64\[1, V\]"),
        (in_tensor("prefill", "stage2_slots", role=None), "of which only the length is read, found int64"),
        (in_tensor("prefill", "input_ids", role="length"), "found .*, of which only the length is read"),
        (in_tensor("decode", PAST, shape=["B", 4, 448, 16]), r"expected float32\[B, 4, L2, 16\], found"),
        (in_tensor("prefill", PRESENT, shape=[1, 4, "L1", 16]), r"expected float32\[1, 4, L2, 16\], found"),
        (
            lambda m: m["contract"]["decode"].pop("aliases"),
            "aliases: expected 1 present.0.key, found 0",
        ),
        (
            lambda m: m["contract"]["vision"]["aliases"].update(a="b"),
            "contract.vision.aliases: expected 0 a, found 1",
        ),
        (
            lambda m: m["contract"]["prefill"]["aliases"].update({PRESENT: "past_key_values.3.value"}),
            "aliases.present.3.key: expected past_key_values.3.key, found past_key_values.3.value",
        ),
    ],
)
def test_graphs_that_the_steps_cannot_run(manifest: dict[str, Any], change: Change, message: str) -> None:
    change(manifest)
    refused(manifest, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["sizes"].pop("B"), "sizes: expected 1 B, found 0 B"),
        (lambda m: m["sizes"].update(T={"min": 1, "max": 2}), "sizes: expected 0 T, found 1 T"),
        (in_size("Q", min=129), "sizes.Q: expected min <= default <= max, found {'min': 129, 'max': 128}"),
        (in_size("N2", min=65), "sizes.N2: expected min <= default <= max"),
        (in_size("N2", max=63), "sizes.N2: expected min <= default <= max"),
        (in_size("N2", default=65), "sizes.N2.default: expected 64, found 65"),
        (in_size("N2", max=289), "sizes.N2.max: expected at most 288, found 289"),
        (in_size("N2", max=None), "sizes.N2.max: expected at most 288, found None"),
        (in_size("N1", default=None), "sizes.N1.default: expected 518, found None"),
        (in_size("V", default=517, min=1), "sizes.V.default: expected 518, found 517"),
        (in_size("V", max=519), "sizes.V.max: expected at most 518, found 519"),
        (in_size("S", max=647), "sizes.S.max: expected at most 646, found 647"),
        (in_size("Q", max=129), "sizes.Q.max: expected at most 128, found 129"),
    ],
)
def test_sizes_without_room(manifest: dict[str, Any], change: Change, message: str) -> None:
    change(manifest)
    refused(manifest, message)


@pytest.mark.parametrize("manifest", [False], indirect=True)
def test_sizes_of_an_unpruned_bundle(manifest: dict[str, Any]) -> None:
    assert set(manifest["sizes"]) == {"B", "C", "S", "V", "L1"}
    in_size("S", max=705)(manifest)
    refused(manifest, "sizes.S.max: expected at most 704, found 705")


@pytest.fixture
def tiled(tmp_path: Path) -> dict[str, Any]:
    """The manifest of a bundle that cuts pictures; free to be changed."""
    images = resolve_images(ONEVISION, room=30000, max_images=2)
    spec = ExportSpec(
        model=ONEVISION, schedule=resolve_star(ONEVISION, images), images=images, max_text_tokens=100,
        max_new_tokens=50, append_tokens=64, dtype="float16",
    )  # fmt: skip
    write_manifest(tmp_path, spec, source={"model": "x", "revision": None}, versions={}, engines={})
    return dict(json.loads((tmp_path / "manifest.json").read_bytes()))


def test_pictures_in_tiles_are_coherent(tiled: dict[str, Any]) -> None:
    assert read_manifest(tiled).spec.model == ONEVISION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_spec("model", "tiling", to=None), "stage 1 keeps a share of each picture, but all have one size"),
        (in_spec("model", "tiling", to={}), "spec.model.tiling: object missing required field pinpoints"),
        (in_spec("model", "tiling", "pinpoints", to=[[384, 700]]), "no whole tiles of 384 px"),
        (in_spec("model", "tiling", "pinpoints", to=[]), "no whole tiles of 384 px"),
        (in_spec("model", "tiling", "pinpoints", to=[[384]]), r"pinpoints\[0\]: expected array of length 2"),
        (in_spec("model", "tiling", "max_grid", to=0), "max_grid: expected int >= 1"),
        (
            in_spec("model", "tiling", "max_grid", to=None),
            "contract.vision.inputs: expected 0 packed_weights",
        ),
        (in_spec("model", "tiling", "max_grid", to=4), "sizes.P.max: expected at most"),
        (in_spec("model", "vision", "has_cls", to=True), "sizes.P.max: expected at most 8766"),
        (in_spec("model", "vision", "feature_layers", to=[]), r"feature_layers: \(\) of 26 layers"),
        (in_spec("model", "vision", "feature_layers", to=[27]), r"feature_layers: \(27,\) of 26 layers"),
        (in_spec("model", "vision", "feature_layers", to=[-1]), r"feature_layers\[0\]: expected int >= 0"),
        (in_spec("model", "vision", "feature_select", to="cls"), "feature_select: .*cls"),
        (in_spec("model", "text", "sliding_window", to=4096), "over the model's 4096 tokens of its sliding"),
        (in_spec("images", "max_images", to=0), "images.max_images: expected int >= 1"),
        (in_spec("images", "max_tiles", to=36), "sizes.T.max: expected at most 36, found 37"),
        (in_spec("images", "max_image_tokens", to=700), "have no room for any picture"),
        (in_spec("append_tokens", to=1), r"input_ids: expected int64\[B, 1\], found int64\[B, C\]"),
        (in_spec("append_tokens", to=32), "sizes.C.max: expected at most 32, found 64"),
        (in_stage(0, share=None), "vision.inputs: expected 1 stage1_slots, found 0"),
        (in_stage(1, share=1.0), "stage 2 keeps a share of 1, over its maximum of"),
        (in_stage(0, share=1.5), r"schedule\[0\].share: expected float <= 1"),
        (in_stage(0, share=0.95), "stage 1 leaves .* tokens of the largest request, over its maximum of"),
        (in_size("P", max=9000), "sizes.P.max: expected at most 8829, found 9000"),
        (in_size("D1", max=9000), "sizes.D1.max: expected at most"),
        (in_size("V", default=729), "sizes.V.default: expected None, found 729"),
        (lambda m: m["sizes"].pop("T"), "sizes: expected 1 T, found 0 T"),
        (in_tensor("vision", "stage1_drops", role=None), "of which only the length is read, found int64"),
        (in_tensor("vision", "packed_index", shape=["P"]), r"expected int64\[P, 4\], found int64\[P\]"),
    ],
)
def test_pictures_in_tiles_that_cannot_be(tiled: dict[str, Any], change: Change, message: str) -> None:
    change(tiled)
    refused(tiled, message)
