"""The vision graph of every family and tower, in ONNX Runtime, against transformers' own features."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from star_export.build import BuildOptions, resolve_spec
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.contract import VISION
from star_export.graphs.export import export_graph, fake_module
from star_export.graphs.weights import plan_weights, write_weights
from star_export.preprocessing.packing import Packing, packed_index, packed_taps
from star_export.specs import ExportSpec, picture_grid

WHOLE = ["feature-layers", "full", "interleave"]
TILED = {"next": LlavaNextImageProcessorPil, "onevision": LlavaOnevisionImageProcessorPil}
#: (height, width): square, landscape, portrait, very long, tiny, and one of a pixel's width.
SIZES = [(70, 70), (40, 61), (95, 50), (30, 400), (5, 3), (64, 1), (108, 107)]
NEWLINE = 1e30


@dataclass(frozen=True)
class Exported:
    """A vision graph in ONNX Runtime and the checkpoint that it is of."""

    checkpoint: Path
    spec: ExportSpec
    session: ort.InferenceSession

    def run(self, **inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        wanted = {tensor.name for tensor in self.session.get_inputs()}
        return [
            np.asarray(o) for o in self.session.run(None, {n: v for n, v in inputs.items() if n in wanted})
        ]

    @cached_property
    def model(self) -> Any:
        """transformers' own, which shows its attention."""
        return AutoModelForImageTextToText.from_pretrained(
            self.checkpoint, attn_implementation="eager"
        ).eval()

    def packing(self, size: tuple[int, int]) -> Packing:
        vision, tiling = self.spec.model.vision, self.spec.model.tiling
        assert tiling is not None
        grid = picture_grid(size, tiling, tile=vision.image_size, side=vision.grid_side)
        tokens = vision.tile_tokens + grid.tokens
        return Packing(tokens=tokens, newlines=grid.shape[0], grid=grid)

    def packed(self, packing: Packing) -> dict[str, npt.NDArray[Any]]:
        vision, tiling = self.spec.model.vision, self.spec.model.tiling
        assert tiling is not None
        if tiling.max_grid is None:
            return {"packed_index": packed_index(packing, vision)}
        index, weights = packed_taps(packing, vision)
        return {"packed_index": index, "packed_weights": weights}


@pytest.fixture(scope="module")
def exported(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Exported]:
    made: dict[tuple[str, bool], Exported] = {}

    def get(preset: str, *, prune: bool = True) -> Exported:
        if (preset, prune) not in made:
            made[preset, prune] = export(checkpoint(preset), tmp_path_factory.mktemp(preset), prune)
        return made[preset, prune]

    return get


def export(folder: Path, output: Path, prune: bool) -> Exported:
    opened = open_checkpoint(str(folder))
    options = BuildOptions(model=str(folder), output=output, keep=20 if prune else None, prune=prune)
    spec = resolve_spec(options, opened)
    plan = plan_weights(fake_module(VISION, spec), opened, spec)
    weights = write_weights(output / "vision.safetensors", plan, lambda _bytes: None)
    export_graph(VISION, spec, weights, output / "vision.onnx")
    return Exported(folder, spec, ort.InferenceSession(output / "vision.onnx"))


def picture(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8)


def received(graph: Exported, pixels: Tensor) -> Tensor:
    """The score of every used token of each tile ``[T, N]``, from transformers' attention."""
    vision = graph.spec.model.vision
    with torch.no_grad():
        attention = graph.model.model.vision_tower(pixels, output_attentions=True).attentions
    weights = attention[vision.num_layers - 1]
    first = int(vision.has_cls or vision.feature_select == "default")
    scores = weights[:, :, first:, first:].mean(dim=(1, 2))
    if vision.feature_select == "full" and vision.has_cls:
        scores = torch.cat([torch.full((len(scores), 1), NEWLINE), scores], dim=1)
    return scores


def best(scores: Tensor, count: int) -> list[int]:
    return sorted(torch.sort(scores, descending=True, stable=True).indices[:count].tolist())


@pytest.mark.parametrize("preset", WHOLE)
def test_features_of_a_whole_picture(exported: Callable[..., Exported], preset: str) -> None:
    graph = exported(preset)
    vision = graph.spec.model.vision
    side = vision.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = graph.model.get_image_features(pixels).pooler_output[0].numpy()
    assert len(expected) == vision.tile_tokens == 64 + (preset == "full")
    for count in (vision.tile_tokens - 1, 58, 7):
        features, indices = graph.run(pixel_values=pixels.numpy(), stage1_slots=np.zeros(count, np.int64))
        assert indices[0].tolist() == best(received(graph, pixels)[0], count)
        np.testing.assert_allclose(features[0], expected[indices[0]], atol=1e-5)


def expected_of(
    graph: Exported, pictures: list[npt.NDArray[np.uint8]]
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Tiles, features and scores that transformers gives for the first of the pictures of one request."""
    kind = TILED["onevision" if graph.spec.model.model_type == "llava_onevision" else "next"]
    nested = [pictures] if len(pictures) > 1 else pictures
    given = kind.from_pretrained(graph.checkpoint)(nested, return_tensors="pt")
    model = graph.model.model
    several = {"batch_num_images": given["batch_num_images"]} if "batch_num_images" in given else {}
    with torch.no_grad():
        features = model.get_image_features(
            given["pixel_values"], given["image_sizes"], **several
        ).pooler_output
    tiles = given["pixel_values"][0]
    scores = received(graph, tiles)[..., None]
    ratio = (
        {"vision_aspect_ratio": model.config.vision_aspect_ratio}
        if several
        else {"vision_feature_select_strategy": "default"}
    )
    packed, _ = model.pack_image_features(
        [scores], given["image_sizes"][:1], image_newline=torch.tensor([NEWLINE]), **ratio
    )
    return tiles, features, packed[0][:, 0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("preset", TILED)
def test_features_of_tiles(exported: Callable[..., Exported], preset: str, size: tuple[int, int]) -> None:
    graph, unpruned = exported(preset), exported(preset, prune=False)
    tiles, [expected], scores = expected_of(graph, [picture(size)])
    packing = graph.packing(size)
    inputs = {"pixel_values": tiles.numpy(), **graph.packed(packing)}
    [features] = unpruned.run(**inputs)
    assert features.shape == (1, packing.tokens, graph.spec.model.text.hidden_size)
    np.testing.assert_allclose(features[0], expected.numpy(), atol=1e-5)
    for kept in (packing.tokens - 1, graph.spec.entering(packing.tokens, packing.newlines)):
        drops = np.zeros(packing.tokens - kept, np.int64)
        features, indices = graph.run(**inputs, stage1_drops=drops)
        assert indices[0].tolist() == best(scores, kept)
        np.testing.assert_allclose(features[0], expected.numpy()[indices[0]], atol=1e-5)


def test_one_of_several_pictures_of_onevision(exported: Callable[..., Exported]) -> None:
    """It is one tile with a newline behind it."""
    graph = exported("onevision")
    tiles, [expected, _, _], scores = expected_of(graph, [picture(size) for size in SIZES[:3]])
    assert len(tiles) == 1
    assert len(expected) == 26
    packing = Packing(tokens=26, newlines=1)
    drops = np.zeros(26 - graph.spec.entering(26, 1), np.int64)
    features, indices = graph.run(pixel_values=tiles.numpy(), **graph.packed(packing), stage1_drops=drops)
    assert indices[0].tolist() == best(scores, 26 - len(drops))
    assert indices[0][-1] == 25
    np.testing.assert_allclose(features[0], expected.numpy()[indices[0]], atol=1e-5)


def test_the_sizes_reach_every_case(exported: Callable[..., Exported]) -> None:
    grids = [exported("onevision").packing(size).grid for size in SIZES]
    assert {grid.resized for grid in grids if grid} == {True, False}
    assert {grid.first[0] > 0 for grid in grids if grid} == {True, False}
    assert {grid.first[1] > 0 for grid in grids if grid} == {True, False}
    assert (3, 3) in {grid.tiles for grid in grids if grid}
