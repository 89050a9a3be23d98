"""Processors of every family: read from files of any age, and followed to the last image token and bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star_export.checkpoint.config import read_model
from star_export.errors import CheckpointError
from star_export.preprocessing import convert, prepare
from star_export.preprocessing.processor import read_processor

PRESETS = ["vicuna", "full", "interleave", "next", "next-mistral", "onevision"]
SIZES = [(640, 480), (480, 640), (100, 100), (30, 200), (1, 1), (200, 1)]
IMAGES, COUNTS = "preprocessor_config.json", "processor_config.json"
SIX = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """``folder("next")``: the small files of a checkpoint, free to be changed."""

    def copy(preset: str) -> Path:
        for path in (*checkpoint(preset).glob("*.json"), *checkpoint(preset).glob("*.jinja")):
            if path.name != "model.safetensors.index.json":
                shutil.copy(path, tmp_path)
        return tmp_path

    return copy


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; ``...`` removes one."""
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({name: v for name, v in (data | values).items() if v is not ...}))


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def image_tokens(folder: Path, images: list[Image.Image]) -> tuple[int, int]:
    """Visual tokens of a request: the checkpoint's processor's, and ours, whose pixels must be the same."""
    processor, model = read_processor(folder), read_model(folder)
    nested = model.tiling is not None and model.tiling.several_whole
    inputs = processor(
        images=[images] if nested else images, text="<image> and " * len(images), return_tensors="np"
    )
    prepared = prepare(images, convert.image_spec(processor, model), model)
    for ours, theirs in zip(prepared, inputs["pixel_values"], strict=True):
        tiles = theirs.reshape(-1, *ours.pixels.shape[1:])
        assert np.array_equal(ours.pixels, tiles[: len(ours.pixels)])
    count = int((inputs["input_ids"] == model.image_token_id).sum())
    return count, sum(image.packing.tokens for image in prepared)


@pytest.mark.parametrize("preset", PRESETS)
def test_as_published(checkpoint: Callable[[str], Path], preset: str) -> None:
    requests = [[noise(*size)] for size in SIZES] + [[noise(*size) for size in SIZES[:3]]]
    for images in requests:
        theirs, ours = image_tokens(checkpoint(preset), images)
        assert theirs == ours


WRONG = {
    "patch_size": 32,
    "num_additional_image_tokens": 7,
    "vision_feature_select_strategy": "default",
    "num_image_tokens": 576,
    "vision_aspect_ratio": "anyres_max_2",
}


@pytest.mark.parametrize("preset", ["full", "interleave", "next", "onevision"])
@pytest.mark.parametrize("counts", ["missing", "poorer", "null", "wrong"])
def test_what_the_model_says_counts(folder: Callable[[str], Path], preset: str, counts: str) -> None:
    """Files of other versions lack what tokens are counted by, or have it wrong; so has config.json."""
    path = folder(preset)
    known = json.loads((path / COUNTS).read_text())
    if counts == "missing" and (path / IMAGES).exists():
        (path / COUNTS).unlink()
    else:
        values = {"poorer": ..., "null": None, "missing": ...}
        edit(
            path / COUNTS,
            **{name: values.get(counts, wrong) for name, wrong in WRONG.items() if name in known},
        )
    edit(path / "config.json", image_seq_length=577)
    for images in ([noise(640, 480)], [noise(100, 100), noise(48, 64)]):
        theirs, ours = image_tokens(path, images)
        assert theirs == ours


def published(path: Path, *, tiles: bool) -> Path:
    """The numbers of LLaVA-OneVision-0.5B's config, or LLaVA-Interleave-0.5B's."""
    vision = json.loads((path / "config.json").read_text())["vision_config"]
    pinpoints = {"image_grid_pinpoints": SIX, "vision_aspect_ratio": "anyres_max_9"} if tiles else {}
    edit(path / "config.json", vision_config=vision | {"image_size": 384, "patch_size": 14}, **pinpoints)
    return path


def test_published_sizes_of_onevision(folder: Callable[[str], Path]) -> None:
    path = published(folder("onevision"), tiles=True)
    edit(path / IMAGES, size={"height": 384, "width": 384}, image_grid_pinpoints=SIX)
    assert image_tokens(path, [noise(640, 480)]) == (2929, 2929)
    assert image_tokens(path, [noise(640, 480), noise(48, 64)]) == (1460, 1460)


def test_what_is_missing_is_the_classs_default(folder: Callable[[str], Path]) -> None:
    path = published(folder("onevision"), tiles=True)
    (path / IMAGES).write_text('{"image_processor_type": "LlavaOnevisionImageProcessor"}')
    edit(path / "config.json", image_grid_pinpoints=..., vision_aspect_ratio=...)
    assert image_tokens(path, [noise(640, 480)]) == (2929, 2929)


@pytest.mark.parametrize(
    "name",
    ["LlavaNextImageProcessorFast", "LlavaNextImageProcessorPil", "LlavaNextFeatureExtractor", None],
)
def test_names_of_an_image_processor(folder: Callable[[str], Path], name: str | None) -> None:
    path = folder("next")
    if name is not None and name.endswith("Extractor"):
        edit(path / IMAGES, image_processor_type=..., feature_extractor_type=name)
    else:
        edit(path / IMAGES, image_processor_type=name or ...)
    assert image_tokens(path, [noise(64, 48)]) == image_tokens(folder("next"), [noise(64, 48)])


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("next", {"size": 28, "crop_size": 28}),
        ("next", {"size": {"height": 28, "width": 28}, "do_center_crop": False, "do_pad": False}),
        ("onevision", {"size": 36, "crop_size": None, "do_center_crop": None}),
        ("onevision", {"size": {"shortest_edge": 36}, "resample": 2}),
        ("interleave", {"size": {"height": 58, "width": 58}, "do_convert_rgb": None}),
        ("interleave", {"image_processor_type": "CLIPImageProcessor", "size": 60, "crop_size": 58}),
    ],
)
def test_other_ways_to_say_a_size(folder: Callable[[str], Path], preset: str, values: dict[str, Any]) -> None:
    path = folder(preset)
    edit(path / IMAGES, **values)
    theirs, ours = image_tokens(path, [noise(64, 48)])
    assert theirs == ours


@pytest.mark.parametrize("place", ["own file", "processor_config.json"])
def test_parameters_for_videos_need_no_torchvision(folder: Callable[[str], Path], place: str) -> None:
    path = folder("onevision")
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": 36, "width": 36}}
    if place == "own file":
        (path / "video_preprocessor_config.json").write_text(json.dumps(video))
    else:
        edit(path / COUNTS, video_processor=video, image_processor=json.loads((path / IMAGES).read_text()))
        (path / IMAGES).unlink()
    assert image_tokens(path, [noise(64, 48)]) == (113, 113)


@pytest.mark.parametrize(
    ("preset", "values", "message"),
    [
        (
            "next",
            {"image_grid_pinpoints": [[28, 56]]},
            r"are \[\[28, 56\]\] in the image processor and \[\[",
        ),
        ("next", {"image_grid_pinpoints": 28}, "are 28 in the image processor and .* make them agree"),
        ("next", {"crop_size": 27}, r"crop \(27, 27\) do not give tiles of 28x28 pixels"),
        (
            "next",
            {"size": {"shortest_edge": 29}},
            r"{'shortest_edge': 29} and crop .* do not give tiles",
        ),
        (
            "next",
            {"image_processor_type": "CLIPImageProcessor"},
            "'CLIPImageProcessor' is not supported",
        ),
        ("onevision", {"size": {"height": 36, "width": 37}}, "do not give tiles of 36x36 pixels"),
        ("onevision", {"crop_size": 35}, "do not give tiles of 36x36 pixels"),
        ("onevision", {"size": None}, "size {} and crop None do not give tiles of 36x36 pixels"),
        ("onevision", {"resample": "cubic"}, "are not supported: resample: expected int, got str"),
        ("onevision", {"do_rescale": False}, "without resize, rescale or normalize"),
        ("onevision", {"image_mean": [0.5]}, "are not supported: mean: expected array of length 3, got 1"),
        ("onevision", {"image_std": 0.5}, "are not supported: std: expected array, got float"),
        ("interleave", {"do_pad": True}, r"that pads pictures \(do_pad\) is not supported here"),
        ("interleave", {"size": 58}, "{'shortest_edge': 58} and crop None do not give 58x58 pixels"),
        ("interleave", {"image_mean": None}, "are not supported: mean: expected array, got null"),
        ("interleave", {"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor' is not supported"),
    ],
)
def test_other_parameters_are_refused(
    folder: Callable[[str], Path], preset: str, values: dict[str, Any], message: str
) -> None:
    path = folder(preset)
    edit(path / IMAGES, **values)
    with pytest.raises(CheckpointError, match=message):
        convert.image_spec(read_processor(path), read_model(path))
