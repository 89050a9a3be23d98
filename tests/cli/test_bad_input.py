"""Every bad input ends in one clear line on stderr and exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from star_export.bundle import open_bundle, write_manifest
from star_export.specs import ExportSpec
from star_export.typed import convert

from .conftest import refused

BundleOf = Callable[..., Path]


@pytest.fixture
def build(cli: Any, checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """Run ``star-export build`` on the mha checkpoint; nothing may be left behind."""

    def call(*options: object, model: object = None) -> Any:
        outcome = cli("build", "-m", model or checkpoint("mha"), "-o", tmp_path / "out" / "b", *options)
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
        return outcome

    return call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep", 0), "--keep must be at least 1 visual token, got 0"),
        (("--keep", 518), "--keep 518 is not below the 518 tokens that stage 1 keeps"),
        (("--keep", 64, "--keep-ratio", 0.1), "either --keep or --keep-ratio"),
        (("--keep-ratio", 1.5), "--keep-ratio must be between 0 and 1, got 1.5"),
        (("--max-keep", 29), "--keep 64 is over this bundle's maximum of 29"),
        (("--drop-ratio", 1), "--drop-ratio must be at least 0 and below 1, got 1"),
        (("--prune-layer", 6), "--prune-layer must be from 1 to 5 for this 6-layer decoder, got 6"),
        (("--prune-layer", 0), "--prune-layer must be from 1 to 5"),
        (("--max-images", 0), "--max-images must be at least 1, got 0"),
        (("--max-images", 3, "--max-image-tokens", 575), "--max-image-tokens 575 has no room for a picture"),
        (("--max-tiles", 2), "--max-tiles must be from 1 to 1 for this model, got 2"),
        (("--max-text-tokens", 0), "--max-text-tokens must be at least 1, got 0"),
        (("--max-new-tokens", 5000), "over the model's 2048 positions"),
        (("--fp32-layers", "lm_head"), "--fp32-layers has no meaning with --dtype float32"),
        (
            ("--dtype", "float16", "--fp32-layers", "language_model.layers.6"),  # of 6 layers
            "names nothing in this bundle; did you mean language_model.layers.5?",
        ),
        (("--dtype", "bfloat16", "--fp32-layers", "vision_tower.encoder.layers.3"), "names nothing"),
        (("--no-prune", "--keep", 64), "--keep has no meaning with --no-prune"),
        (("--no-prune", "--stage1", "spread"), "--stage1 has no meaning with --no-prune"),
        (("--no-prune", "--schedule", "fast"), "--schedule has no meaning with --no-prune"),
        (("--stage1", "spred"), "--stage1 spred is no score of this stage; did you mean spread?"),
        (("--stage2", "cls"), "--stage2 cls is no score of this stage; scores are text, last, "),
        (("--schedule", "fast", "--stage2", "last"), "--stage2 last has no meaning with --schedule fast"),
        (("--schedule", "balanced64"), "--schedule balanced64 is no schedule; did you mean balanced-64?"),
        (("--schedule", "100@0,200@3"), "stage 2 keeps up to 200 tokens, expected at most 99"),
        (("--schedule", "100@0,50@6"), "50@6 is outside; this decoder's 6 layers take stages at 0"),
        (("--schedule", "50@3,100@0"), "100@0 comes after 50@3; give stages in order of layers"),
        (("--schedule", "576@0"), "576@0 is not below the 576 visual tokens of a picture; keep fewer"),
        (("--schedule", "100@0", "--max-keep", 64), "--max-keep 64 is about a stage inside the decoder"),
        (
            ("--schedule", "fast", "--keep", 64),
            "--keep has no meaning with --schedule fast; leave one of them out",
        ),
        (("--schedule", "fast", "--keep-ratio", 0.1), "--keep-ratio has no meaning with --schedule fast"),
        (("--schedule", "fast", "--drop-ratio", 0.2), "--drop-ratio has no meaning with --schedule fast"),
        (("--schedule", "9@2", "--prune-layer", 3), "--prune-layer has no meaning with --schedule 9@2"),
        (("--backend", "onnxruntim"), "unknown backend onnxruntim; did you mean onnxruntime?"),
        (("--chat-template", "nowhere.jinja"), "--chat-template nowhere.jinja cannot be read"),
        (("--end-token", "<|eot_id|>"), "--end-token '<|eot_id|>' is no token of this model"),
    ],
)
def test_build_options(build: Callable[..., Any], options: tuple[object, ...], message: str) -> None:
    refused(build(*options), message)


def test_build_score_of_cls_without_cls(build: Callable[..., Any], checkpoint: Callable[[str], Path]) -> None:
    message = (
        "--stage1 cls needs a class token, and siglip_vision_model has none; use received, spread, peaks"
    )
    refused(build("--stage1", "cls", "--keep", 9, model=checkpoint("interleave")), message)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("llava-1.5-7", "no folder, alias or hub id is called llava-1.5-7; did you mean llava-1.5-7b?"),
        ("nowhere", "aliases are llava-1.5-7b, llava-1.5-13b"),
    ],
)
def test_build_unknown_model(build: Callable[..., Any], model: str, message: str) -> None:
    refused(build(model=model), message)


def test_build_foreign_architecture(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    refused(build(model=tmp_path), "model_type 'qwen2_vl' is not supported; supported: llava")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_build_damaged_weights(
    build: Callable[..., Any], checkpoint: Callable[[str], Path], tmp_path: Path, damage: str
) -> None:
    copy = shutil.copytree(checkpoint("mha"), tmp_path / "copy")
    shard = sorted(copy.glob("*.safetensors"))[1]
    if damage == "missing":
        shard.unlink()
        refused(build(model=copy), f"lacks {shard.name}")
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
        refused(build(model=copy), "is truncated or not safetensors")


def test_build_float16_overflow(
    build: Callable[..., Any], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(checkpoint("mha"), tmp_path / "copy")
    shard = next(path for path in copy.glob("*.safetensors") if "lm_head" in str(load_file(path).keys()))
    change_tensor(shard, "language_model.lm_head.weight", np.float32(1e6))
    refused(build("--dtype", "float16", model=copy), "lm_head.weight has values that float16 cannot hold")


def change_tensor(path: Path, name: str, value: np.generic) -> None:
    """Overwrite the first element of a tensor in place."""
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    begin = 8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]
    data[begin : begin + value.nbytes] = value.tobytes()
    path.write_bytes(data)


def test_build_existing_output(cli: Any, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep me")
    request = ("build", "-m", checkpoint("mha"), "-o", tmp_path)
    refused(cli(*request), "exists; give --overwrite to replace it")
    refused(cli(*request, "--overwrite"), "is not a bundle, so --overwrite will not replace it")
    assert (tmp_path / "mine").read_text() == "keep me"


def test_engines_that_a_killed_build_left_do_not_count_as_the_users_files(
    cli: Any, copy: Path, tmp_path: Path
) -> None:
    left = copy / "engines/.tensorrt-rtx.partial-1"
    (left / "new").mkdir(parents=True)
    (left / "lock").touch()
    (left / "new/decode.engine").write_text("half")
    refused(cli("build", "-m", tmp_path / "nowhere", "-o", copy, "--overwrite"), "nowhere")
    assert not left.exists()


def ask(cli: Any, folder: Path, image: Path, *options: object, prompt: str = "Where?") -> Any:
    return cli("run", folder, "--image", image, "--prompt", prompt, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep", 0), "--keep must be at least 1"),
        (
            ("--keep", 289),
            "--keep 289 is over this bundle's maximum of 288; build it again with --max-keep 289",
        ),
        (("--keep", 518), "--keep 518 is not below the 518 tokens"),
        (("--max-new-tokens", 33), "--max-new-tokens must be from 1 to 32, got 33"),
        (("--temperature", -1), "--temperature must be 0"),
        (("--top-p", 2), "--top-p must be above 0 and at most 1, got 2"),
        (("--top-logprobs", 21), "--top-logprobs must be from 0 to 20, got 21"),
        (("--schema", "none.json"), "cannot read --schema 'none.json'"),
        (("--schema", '{"type": "strng"}'), "--schema cannot be used: Invalid type: strng"),
        (("--backend", "tensort"), "unknown backend tensort"),
        (("--end-token", "<|eot_id|>"), "--end-token '<|eot_id|>' is no token of this model"),
    ],
)
def test_run_options(
    cli: Any, bundle: BundleOf, picture: Path, options: tuple[object, ...], message: str
) -> None:
    refused(ask(cli, bundle("mha"), picture, *options), message)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("why " * 200, "this bundle has room for 128; shorten it or build it again with --max-text-tokens"),
        ("<image><image> what?", "the prompt has 2 <image> tokens, expected 1, one for each picture"),
        ("What is in <image>", "no text follows <image>"),
    ],
)
def test_run_prompts(cli: Any, bundle: BundleOf, picture: Path, prompt: str, message: str) -> None:
    refused(ask(cli, bundle("mha"), picture, prompt=prompt), message)


def test_run_two_images(cli: Any, bundle: BundleOf, picture: Path) -> None:
    refused(
        ask(cli, bundle("mha"), picture, "--image", picture),
        "takes at most 1 picture, got 2; build it again with --max-images 2",
    )


def test_run_pictures(cli: Any, bundle: BundleOf, tmp_path: Path) -> None:
    refused(ask(cli, bundle("mha"), tmp_path / "none.png"), "none.png does not exist")
    (tmp_path / "text.png").write_text("not a picture")
    refused(ask(cli, bundle("mha"), tmp_path / "text.png"), "is not a picture that Pillow can read")
    Image.new("1", (30000, 30000)).save(tmp_path / "huge.png")
    refused(ask(cli, bundle("mha"), tmp_path / "huge.png"), "huge.png has too many pixels")


@pytest.fixture
def copy(bundle: BundleOf, tmp_path: Path) -> Path:
    """A copy of a real bundle, free to be damaged."""
    return shutil.copytree(bundle("mha"), tmp_path / "copy")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_changed_byte(cli: Any, copy: Path, picture: Path) -> None:
    data = bytearray((copy / "graphs/decoder.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "graphs/decoder.safetensors").write_bytes(data)
    for request in (("run", copy, "-i", picture, "-p", "Where?"), ("inspect", copy), ("check", copy)):
        refused(cli(*request), "decoder.safetensors differs from the SHA-256 in the manifest")


def test_missing_file(cli: Any, copy: Path, picture: Path) -> None:
    (copy / "graphs/decode.onnx").unlink()
    refused(ask(cli, copy, picture), "lacks graphs/decode.onnx")


def test_newer_format(cli: Any, copy: Path, picture: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest.update(format_version=99))
    refused(ask(cli, copy, picture), "has bundle format 99, this star-export reads 1 to 5")


def test_path_that_leaves_the_folder(cli: Any, copy: Path, picture: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["files"][0].update(path="../outside"))
    refused(ask(cli, copy, picture), "names ../outside, which leaves the bundle")


def test_not_a_bundle(cli: Any, tmp_path: Path, picture: Path) -> None:
    refused(ask(cli, tmp_path, picture), "is not a bundle: it has no manifest.json")


def test_graph_that_does_not_load(cli: Any, copy: Path, picture: Path) -> None:
    (copy / "graphs/vision.onnx").write_bytes(b"not a graph")
    rehash(copy)
    refused(ask(cli, copy, picture), "cannot load")


def rehash(folder: Path) -> None:
    """Make the manifest fit files that were changed on purpose."""
    manifest = json.loads((folder / "manifest.json").read_text())
    spec = convert(manifest["spec"], ExportSpec)
    write_manifest(folder, spec, source=manifest["source"], versions=manifest["versions"])


def test_check_fails_with_exit_code_1(cli: Any, copy: Path, tmp_path: Path) -> None:
    name = "language_model.layers.5.mlp.down_proj.weight"
    change_tensor(copy / "graphs/decoder.safetensors", name, np.float32(9.0))
    rehash(copy)
    outcome = cli("check", copy, "--probes", 1, "--junit", tmp_path / "j.xml")
    assert outcome.code == 1
    assert "FAIL: 1 case" in outcome.out
    assert "<failure" in (tmp_path / "j.xml").read_text()


def test_check_without_the_source(cli: Any, copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["source"].update(model="nowhere/at all"))
    refused(cli("check", copy), "check needs the source checkpoint; give it with --model")


def test_check_with_another_model(cli: Any, bundle: BundleOf, checkpoint: Callable[[str], Path]) -> None:
    refused(cli("check", bundle("mha"), "--model", checkpoint("gqa")), "has another architecture")


def test_bench(cli: Any, bundle: BundleOf, picture: Path, tmp_path: Path) -> None:
    folder, few = bundle("mha"), ("--repeats", 1, "--max-new-tokens", 1)
    refused(cli("bench", folder, "-i", tmp_path / "none.png", *few), "none.png does not exist")
    refused(cli("bench", folder, "-i", picture, "--side", "hf", *few), "unknown side hf; sides are pruned")
    refused(cli("bench", folder, "-i", picture, "--baseline", folder, *few), "prunes too; --baseline takes")
    refused(cli("bench", folder, "-i", picture, "--model", "nowhere", *few), "is called nowhere")


def test_unpruned_bundle_has_no_budget(cli: Any, bundle: BundleOf, picture: Path) -> None:
    folder = bundle("mha", prune=False)
    assert open_bundle(folder).spec.schedule == ()
    refused(ask(cli, folder, picture, "--keep", 64), "built with --no-prune")
    refused(cli("check", folder, "--keep", 64), "built with --no-prune")
    refused(cli("bench", folder, "--image", picture), "built with --no-prune")
