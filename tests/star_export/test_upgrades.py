"""Older manifests become present ones; what is damaged in them is left for the reader to name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_export.bundle import open_bundle, write_manifest
from star_export.errors import BundleError
from star_export.specs import ImageLimits, ModelSpec
from star_export.typed import convert
from star_export.upgrades import FORMAT_VERSION, UPGRADES

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A bundle of format 2, ``star`` unless a test asks for another, free to be damaged."""
    kind = getattr(request, "param", "star")
    return Path(shutil.copytree(DATA / f"bundle-format-2-{kind}", tmp_path / "bundle"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("folder", ["star", "full"], indirect=True)
def test_a_manifest_of_format_2_becomes_what_is_written_now(folder: Path) -> None:
    old = open_bundle(folder)
    source, versions = old.manifest["source"], old.manifest["versions"]
    write_manifest(folder, old.spec, source=source, versions=versions, engines=old.manifest["engines"])
    assert json.loads((folder / "manifest.json").read_bytes()) == old.manifest


def in_star(**values: object) -> Callable[[dict[str, Any]], object]:
    """A change of the pruning settings of format 2."""
    return lambda manifest: manifest["spec"]["star"].update(values)


def in_decode(**values: object) -> Callable[[dict[str, Any]], object]:
    """A change of the tensors of decode."""
    return lambda manifest: manifest["contract"]["decode"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_star(keep="64"), r"spec.schedule\[1\].tokens: expected int, got str, found '64'"),
        (in_star(stage1_keep=None), r"spec.schedule\[0\].tokens: expected int, got null"),
        (in_star(stage1_keep=600), "stage 1 keeps up to 600 tokens, expected at most 16"),
        (in_star(prune_layer="3"), r"spec.schedule\[1\].after_layer: expected int, got str"),
        (in_star(prune_layer=6), "stage 2 comes after layer 6, expected 1 to 2"),
        (in_star(colour=1), r"spec.schedule\[1\].colour: unknown to this version"),
        (lambda m: m["spec"]["star"].pop("max_keep"), r"schedule\[1\]: object missing required field max_"),
        (lambda m: m["spec"]["star"].pop("stage1_keep"), r"schedule\[0\]: object missing required field tok"),
        (lambda m: m["spec"].update(star=[]), "groups: expected array, got object"),
        (lambda m: m["spec"].update(star=5), "spec.schedule: expected array, got int, found 5"),
        (lambda m: m["spec"].pop("star"), "spec: object missing required field schedule"),
        (lambda m: m["spec"].update(model=5), "spec.model: expected object, got int"),
        (lambda m: m["spec"]["model"].update(text=[]), "spec.model.text: expected object, got array"),
        (lambda m: m.update(spec=5), "spec: expected object, got int, found 5"),
        (lambda m: m.pop("spec"), "groups: expected array, got object"),
        (lambda m: m.pop("cache_capacities"), "object missing required field groups"),
        (lambda m: m.update(cache_capacities=[5]), r"groups\[0\]: expected object, got int"),
        (lambda m: m["cache_capacities"].update(late=1), r"groups\[1\].capacity: expected 64, found 1"),
        (lambda m: m["cache_capacities"].update(early="1"), r"groups\[0\].capacity: expected int, got str"),
        (lambda m: m["cache_capacities"].update(middle=1), "groups: expected array, got object"),
        (lambda m: m["cache_capacities"].pop("late"), "groups: expected array, got object"),
        (lambda m: m.pop("contract"), "object missing required field contract"),
        (lambda m: m.update(contract=[]), "contract: expected object, got array"),
        (lambda m: m["contract"].update(decode=5), r"contract\[...\]: expected object, got int"),
        (in_decode(inputs=5), r"contract\[...\].inputs: expected array, got int"),
        (in_decode(inputs=[5, None]), r"contract\[...\].inputs\[0\]: expected object, got int"),
        (in_decode(inputs=[{"name": []}]), r"contract\[...\].inputs\[0\].name: expected str, got array"),
        (in_decode(outputs={}), r"contract\[...\].outputs: expected array, got object"),
        (in_decode(outputs=[5, {}, {"name": 5}]), r"contract\[...\].outputs\[0\]: expected object, got int"),
        (in_decode(outputs=[]), "contract.decode.outputs: expected 1 logits, found 0"),
        (
            lambda m: m["contract"]["decode"].pop("outputs"),
            r"contract\[...\]: object missing required field ou",
        ),
        (lambda m: m["spec"]["model"]["vision"].update(patch_size=0), "vision.patch_size: expected int >= 1"),
        (lambda m: m["spec"]["model"].pop("vision"), "spec.model: object missing required field vision"),
        (lambda m: m["spec"].update(max_text_tokens="48"), "spec.max_text_tokens: expected int, got str"),
    ],
)
def test_damage_in_an_older_format_is_named(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=f"manifest.json is damaged: .*{message}"):
        open_bundle(folder)


@pytest.mark.parametrize("folder", ["full"], indirect=True)
def test_late_layers_without_pruning(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["cache_capacities"].update(late=5))
    with pytest.raises(BundleError, match="groups: expected array, got object"):
        open_bundle(folder)


def to_format_3(folder: Path) -> None:
    """Write what format 3 wrote of a bundle of format 2."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(UPGRADES[2](manifest)))


@pytest.mark.parametrize("folder", ["star", "full"], indirect=True)
def test_a_manifest_of_format_3_becomes_what_is_written_now(folder: Path) -> None:
    from_2 = open_bundle(folder).manifest
    to_format_3(folder)
    old = open_bundle(folder)
    assert old.manifest == from_2
    assert old.spec.images == ImageLimits(max_images=1, max_tiles=1, max_image_tokens=16)
    assert (old.spec.append_tokens, [stage.share for stage in old.spec.schedule]) in (
        (1, [None, None]), (1, []),
    )  # fmt: skip
    assert "C" not in old.manifest["sizes"]


def in_model(part: str, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["spec"]["model"][part].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(spec=5), "spec: expected object, got int, found 5"),
        (lambda m: m.pop("spec"), "object missing required field spec"),
        (lambda m: m["spec"].update(schedule=5), "spec.schedule: expected array, got int, found 5"),
        (lambda m: m["spec"].pop("schedule"), "spec: object missing required field schedule"),
        (lambda m: m["spec"].update(schedule=[5]), r"spec.schedule\[0\]: expected object, got int"),
        (
            lambda m: m["spec"]["schedule"][0].pop("tokens"),
            r"schedule\[0\]: object missing required field tok",
        ),
        (lambda m: m["spec"].update(model=[]), "spec.model: expected object, got array"),
        (lambda m: m["spec"].pop("model"), "spec: object missing required field"),
        (lambda m: m["spec"]["model"].update(vision=5), "spec.model.vision: expected object, got int"),
        (lambda m: m["spec"]["model"].update(text=None), "spec.model.text: expected object, got null"),
        (lambda m: m["spec"]["model"].pop("text"), "spec.model: object missing required field text"),
        (in_model("vision", num_layers="2"), r"vision.num_layers: expected int, got str"),
        (lambda m: m["spec"]["model"]["vision"].pop("num_layers"), "vision: object missing required field"),
        (in_model("vision", patch_size=0), "vision.patch_size: expected int >= 1"),
        (in_model("vision", image_size="8"), "vision.image_size: expected int, got str"),
        (in_model("text", sliding_window=8), "over the model's 8 tokens of its sliding window"),
        (
            lambda m: m["spec"].update(append_tokens=2),
            r"decode.inputs.input_ids: expected int64\[B, C\], found int64\[B, 1\]",
        ),
    ],
)
def test_damage_in_format_3_is_named(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    to_format_3(folder)
    edit(folder, change)
    with pytest.raises(BundleError, match=f"manifest.json is damaged: .*{message}"):
        open_bundle(folder)


def model_of_format_2() -> dict[str, Any]:
    """LLaVA-1.5-7B as format 2 wrote it."""
    vision = {
        "image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_layers": 23,
        "num_heads": 16, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05,
    }  # fmt: skip
    text = {
        "hidden_size": 4096, "intermediate_size": 11008, "num_layers": 32, "num_heads": 32,
        "num_kv_heads": 32, "head_dim": 128, "vocab_size": 32064, "hidden_act": "silu", "rms_norm_eps": 1e-05,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    return {
        "vision": vision, "text": text, "projector_act": "gelu", "projector_bias": True,
        "image_token_id": 32000, "eos_token_ids": [2],
    }  # fmt: skip


def upgraded(model: object) -> Any:
    """What the present format makes of it."""
    manifest = {"format_version": 2, "spec": {"model": model}}
    for version in range(2, FORMAT_VERSION):
        manifest = UPGRADES[version](manifest)
    return manifest["spec"]["model"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_of_format_2(bias: bool) -> None:
    old = model_of_format_2()
    old["text"]["attention_bias"] = bias
    model = convert(upgraded(old), ModelSpec)
    assert (model.model_type, model.vision.model_type) == ("llava", "clip_vision_model")
    assert {model.text.q_bias, model.text.k_bias, model.text.v_bias, model.text.o_bias} == {bias}
    assert (model.tiling, model.text.sliding_window) == (None, None)
    assert (model.vision.feature_layers, model.vision.has_cls) == ((23,), True)
    assert (model.vision.feature_select, model.vision.tile_tokens) == ("default", 576)
    assert (model.vision.hidden_size, model.text.hidden_size, model.eos_token_ids) == (1024, 4096, (2,))


def test_an_upgrade_leaves_the_old_values_alone() -> None:
    old = model_of_format_2()
    upgraded(old)
    assert old == model_of_format_2()


@pytest.mark.parametrize("model", [None, 5, "model", [], ["text"]])
def test_a_model_that_is_none(model: object) -> None:
    assert upgraded(model) == model


@pytest.mark.parametrize("part", ["vision", "text"])
@pytest.mark.parametrize("value", [None, 5, "clip", [], [{"attention_bias": True}]])
def test_a_part_that_is_none(part: str, value: object) -> None:
    found = upgraded(model_of_format_2() | {part: value})
    assert found[part] == value
    with pytest.raises(ValueError, match=f"^{part}: expected object, got "):
        convert(found, ModelSpec)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_a_part_that_is_missing(part: str) -> None:
    old = model_of_format_2()
    del old[part]
    with pytest.raises(ValueError, match=f"^object missing required field {part}$"):
        convert(upgraded(old), ModelSpec)


@pytest.mark.parametrize("value", [None, 0, "false", {}, [False]])
def test_a_bias_of_another_type(value: object) -> None:
    old = model_of_format_2()
    old["text"]["attention_bias"] = value
    with pytest.raises(ValueError, match=r"^text\.q_bias: expected bool, got "):
        convert(upgraded(old), ModelSpec)


def test_a_bias_that_is_missing() -> None:
    old = model_of_format_2()
    del old["text"]["attention_bias"]
    with pytest.raises(ValueError, match=r"^text: object missing required field q_bias$"):
        convert(upgraded(old), ModelSpec)
