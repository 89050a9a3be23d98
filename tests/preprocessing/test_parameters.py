"""preprocessor.json and tokenizer.json are read with their types and fit the model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from star_export.bundle import open_bundle
from star_export.errors import BundleError, InputError
from star_export.preprocessing import read_preprocessing, read_tokenizer, tokenize
from star_export.specs import ModelSpec, Tiling


@pytest.fixture
def model(bundle: Callable[..., Path]) -> ModelSpec:
    return open_bundle(bundle("mha")).spec.model


@pytest.fixture
def path(bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a bundle's preprocessor.json, with its tokenizer.json beside it."""
    for name in ("preprocessor.json", "tokenizer.json"):
        shutil.copyfile(bundle("mha") / name, tmp_path / name)
    return tmp_path / "preprocessor.json"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_reads_what_was_written(path: Path, model: ModelSpec) -> None:
    parameters = read_preprocessing(path, model)
    assert json.loads(json.dumps(asdict(parameters))) == json.loads(path.read_text())
    assert parameters.image.mean.__class__ is tuple
    assert read_tokenizer(path.with_name("tokenizer.json"), parameters.prompt).token_to_id("<image>") == (
        model.image_token_id
    )


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("image", {"resample": 6}, "image.resample: expected int <= 5, found 6"),
        ("image", {"resample": None}, "image.resample: expected int, got null"),
        ("image", {"mean": [0.5, 0.5]}, r"image.mean: expected array of length 3, got 2"),
        ("image", {"mean": [0.5, 0.5, 1e30]}, r"image.mean\[2\]: expected float <= 1000.0, found 1e\+30"),
        ("image", {"std": [0, 1, 1]}, r"image.std\[0\]: expected float >= 0.001, found 0"),
        ("image", {"rescale_factor": 0}, "image.rescale_factor: expected float > 0.0, found 0"),
        ("image", {"rescale_factor": "1"}, "image.rescale_factor: expected float, got str"),
        ("image", {"crop": [-96, 96]}, r"image.crop\[0\]: expected int >= 1, found -96"),
        ("image", {"crop": [95, 96]}, "does not give the 96x96 pixels that the model takes"),
        ("image", {"crop": None}, "does not give the 96x96 pixels"),
        ("image", {"shortest_edge": 95}, "is resized to less than the 96 pixels"),
        ("image", {"shortest_edge": None}, "one of shortest_edge and resize_to must be null"),
        ("image", {"resize_to": [96, 96]}, "one of shortest_edge and resize_to must be null"),
        ("image", {"shortest_edge": None, "resize_to": [200, 95]}, "is resized to less than the 96"),
        ("image", {"shortest_edge": 10**9}, "image.shortest_edge: expected int <= 16384"),
        ("image", {"colour": 1}, "image.colour: unknown to this version"),
        ("prompt", {"image_token": ""}, "prompt.image_token: expected str of length >= 1"),
        ("prompt", {"image_token_id": 5}, r"prompt.image_token_id: the model has \d+, found 5"),
        ("prompt", {"special_tokens": {"bos_token": 1}}, r"special_tokens\[...\]: expected str, got int"),
        ("prompt", {"chat_template": {}}, r"prompt.chat_template: expected str \| null, got object"),
        ("prompt", {"forms": 5}, r"prompt.forms: expected object \| null, got int"),
        ("prompt", {"forms": {}}, "prompt.forms: object missing required field start"),
        ("prompt", {"image_token": "<img>"}, "forms.user_with_image.prefix: expected one <img>, found 0"),
    ],
)
def test_wrong_values_are_refused(
    path: Path, model: ModelSpec, part: str, values: dict[str, Any], message: str
) -> None:
    edit(path, lambda parameters: parameters[part].update(values))
    with pytest.raises(
        BundleError, match=f"preprocessor.json is damaged: .*{message}.*; build the bundle again"
    ):
        read_preprocessing(path, model)


def test_a_size_given_exactly(path: Path, model: ModelSpec) -> None:
    for crop in (None, [96, 96]):
        edit(path, lambda p, crop=crop: p["image"].update(shortest_edge=None, resize_to=[96, 96], crop=crop))
        assert read_preprocessing(path, model).image.resize_to == (96, 96)


def test_pictures_that_are_cut_are_resized_exactly(path: Path, model: ModelSpec) -> None:
    tiling = Tiling(pinpoints=((96, 192),), max_grid=None, several_whole=False)
    cutting = replace(model, tiling=tiling)
    with pytest.raises(BundleError, match=r"image.resize_to: must be \[96, 96\] for a model that cuts pict"):
        read_preprocessing(path, cutting)
    edit(path, lambda p: p["image"].update(shortest_edge=None, resize_to=[96, 96], crop=None))
    assert read_preprocessing(path, cutting).image.resize_to == (96, 96)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"image": {}}'])
def test_a_file_that_is_none(path: Path, model: ModelSpec, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"preprocessor.json is damaged: .*; build the bundle again"):
        read_preprocessing(path, model)
    path.unlink()
    with pytest.raises(BundleError, match=r"preprocessor.json is damaged: .*No such file"):
        read_preprocessing(path, model)


def test_a_tokenizer_with_another_image_token(path: Path, model: ModelSpec) -> None:
    edit(path, lambda parameters: parameters["prompt"].update(image_token="What", forms=None))
    prompt = read_preprocessing(path, model).prompt
    with pytest.raises(BundleError, match=r"tokenizer.json makes \[.*\] of What, whose id is \d+; build"):
        read_tokenizer(path.with_name("tokenizer.json"), prompt)


def test_a_tokenizer_that_panics(path: Path, model: ModelSpec) -> None:
    """Its post-processor names a special token that it does not list."""
    prompt = read_preprocessing(path, model).prompt
    file = path.with_name("tokenizer.json")
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": template, "pair": template}
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    edit(file, lambda values: values.update(post_processor=processor | {"special_tokens": special}))
    with pytest.raises(BundleError, match=r"tokenizer.json is damaged: .*; build the bundle again"):
        read_tokenizer(file, prompt)
    with pytest.raises(InputError, match="the bundle's tokenizer cannot encode this prompt"):
        tokenize("<image>", Tokenizer.from_file(str(file)), prompt, tokens_per_image=[1])


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[]"])
def test_a_tokenizer_that_is_none(path: Path, model: ModelSpec, content: bytes) -> None:
    file = path.with_name("tokenizer.json")
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer.json is damaged: .*; build the bundle again"):
        read_tokenizer(file, read_preprocessing(path, model).prompt)
