"""Scores read out of the graphs: those of PyTorch, the reason for what was kept, and not uniform."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from star_export.answer.generation import Result, Timings
from star_export.answer.pipeline import Pipeline
from star_export.bundle import open_bundle
from star_export.errors import BundleError, InputError, NonFiniteError, SettingsError
from star_export.preprocessing import PreparedImage
from star_export.show.scores import (
    ScoreReader,
    Scores,
    ScoringSession,
    StageScores,
    check_scores,
    statistics,
)
from star_export.validation.probes import Probe, make_probes

BundleOf = Callable[..., Path]
[PROBE] = make_probes(1)
#: Presets that cut pictures; their bundles take two.
CUT = ("next", "onevision")


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


class Theirs:
    """The scores of a request, of transformers' own model and packing."""

    def __init__(self, folder: Path, weights: torch.dtype = torch.float32) -> None:
        whole = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
        for parameter in whole.parameters():  # not the buffers: those of rotary positions stay whole
            parameter.data = parameter.data.to(weights).float()
        self.config, self.model = whole.config, whole.model.eval()

    def see(self, image: PreparedImage, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features ``[P, C]`` and scores ``[P]`` of a picture of ``size (height, width)``."""
        tower, config = self.model.vision_tower, self.config
        seen = tower(torch.from_numpy(image.pixels), output_hidden_states=True, output_attentions=True)
        layer = config.vision_feature_layer % len(seen.hidden_states)
        first = int(config.vision_feature_select_strategy == "default")
        cls = seen.hidden_states[0].shape[1] - (tower.config.image_size // tower.config.patch_size) ** 2
        scores = seen.attentions[layer - 1][:, :, cls:, cls:].mean(dim=(1, 2))
        scores = torch.cat([torch.full((len(scores), cls - first), torch.nan), scores], dim=1)
        features = self.model.multi_modal_projector(seen.hidden_states[layer][:, first:])
        nothing = torch.full((1,), torch.nan)
        newline = getattr(self.model, "image_newline", nothing)
        return self._packed(features, newline, image, size), self._packed(
            scores[..., None], nothing, image, size
        )[:, 0]

    def _packed(
        self, tiles: torch.Tensor, newline: torch.Tensor, image: PreparedImage, size: tuple[int, int]
    ) -> torch.Tensor:
        if image.packing.grid is None:
            return torch.cat([tiles[0], *[newline[None]] * image.packing.newlines])
        pack = partial(self.model.pack_image_features, [tiles], torch.tensor([size]), image_newline=newline)
        if self.config.model_type == "llava_next":
            return pack(vision_feature_select_strategy="default")[0][0]
        return pack(vision_aspect_ratio=self.config.vision_aspect_ratio)[0][0]

    @torch.no_grad()
    def scores(
        self, pipeline: Pipeline, pictures: Sequence[Image.Image], prompt: str, kept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of both stages, where stage 1 kept the visual tokens ``kept``."""
        images = pipeline.prepare(pictures)
        tokens = pipeline.tokenize(prompt, images)
        seen = [self.see(i, (p.height, p.width)) for i, p in zip(images, pictures, strict=True)]
        features, scores = (torch.cat(found) for found in zip(*seen, strict=True))
        rows = self.model.get_input_embeddings()(torch.from_numpy(tokens.input_ids))
        rows[0, tokens.image_positions[0]] = features[kept]
        maps = self.model.language_model(inputs_embeds=rows, output_attentions=True).attentions
        received = maps[pipeline.spec.decoder_stages[0].after_layer - 1][0].mean(0)
        asked = received[tokens.query_positions[0]][:, tokens.image_positions[0]].mean(0)
        return scores.numpy(), asked.numpy()


@pytest.mark.parametrize(
    ("preset", "dtype", "sizes", "close"),
    [
        ("mha", "float32", [(480, 360)], 1e-5),
        ("gqa", "float16", [(480, 360)], 2e-2),
        pytest.param("full", "float32", [(50, 70)], 1e-5, marks=pytest.mark.slow),
        pytest.param("next", "float32", [(120, 50)], 1e-4, marks=pytest.mark.slow),
        pytest.param("next", "float32", [(60, 50), (20, 90)], 1e-4, marks=pytest.mark.slow),
        ("onevision", "float32", [(100, 95)], 1e-4),
        ("onevision", "float32", [(60, 50), (20, 90)], 1e-4),
    ],
)
def test_scores_are_those_of_pytorch(
    bundle: BundleOf,
    checkpoint: Callable[[str], Path],
    preset: str,
    dtype: str,
    sizes: list[tuple[int, int]],
    close: float,
) -> None:
    pictures = [noise(*size) for size in sizes]
    opened = open_bundle(bundle(preset, dtype=dtype, max_images=2 if preset in CUT else 1))
    with ScoreReader(opened) as reader:
        found = reader.read(pictures, PROBE.prompt, max_new_tokens=1)
        theirs = Theirs(checkpoint(preset), getattr(torch, dtype))
        expected = theirs.scores(reader.pipeline, pictures, PROBE.prompt, found.stages[0].kept)
    for stage, scores in zip(found.stages, expected, strict=True):
        assert stage.scores.dtype == np.float32
        np.testing.assert_allclose(stage.scores, scores, rtol=close)


@pytest.mark.parametrize("keep", [29, 288])
def test_the_highest_scores_are_kept(bundle: BundleOf, keep: int) -> None:
    found = ScoreReader(open_bundle(bundle("mha"))).read(
        PROBE.pictures, PROBE.prompt, keep=keep, max_new_tokens=1
    )
    for stage, count in zip(found.stages, (518, keep), strict=True):
        best = np.argsort(-stage.scores, kind="stable")[:count]
        assert stage.kept.tolist() == sorted(best.tolist())
    assert len(found.stages[1].scores) == 518


@pytest.mark.parametrize("sizes", [[(100, 95)], [(60, 50), (20, 90)]], ids=["scaled down", "two"])
@pytest.mark.parametrize("preset", CUT)
def test_of_each_picture_newlines_stay_and_the_highest_scores(
    bundle: BundleOf, preset: str, sizes: list[tuple[int, int]]
) -> None:
    with ScoreReader(open_bundle(bundle(preset, max_images=2))) as reader:
        images = reader.pipeline.prepare([noise(*size) for size in sizes])
        found = reader.read([noise(*size) for size in sizes], PROBE.prompt, keep=20, max_new_tokens=1)
        entering = reader.pipeline.entering(images)
    (one, two), first, expected = found.stages, 0, []
    for image, count in zip(images, entering, strict=True):
        scores = one.scores[first : first + image.packing.tokens]
        assert np.isnan(scores).sum() == image.packing.newlines
        best = np.argsort(-np.nan_to_num(scores, nan=np.inf), kind="stable")[:count]
        expected += sorted((first + best).tolist())
        first += image.packing.tokens
    assert one.kept.tolist() == expected
    assert len(one.scores) == first
    assert two.scores.shape == (sum(entering),)
    best = np.argsort(-two.scores, kind="stable")[:20]
    assert two.kept.tolist() == sorted(best.tolist())


def test_a_read_forgets_the_one_before(bundle: BundleOf) -> None:
    with ScoreReader(open_bundle(bundle("next", max_images=2))) as reader:
        pictures = [noise(60, 50), noise(20, 90)]
        reader.read(pictures, PROBE.prompt, max_new_tokens=1)
        again = reader.read(pictures[0], PROBE.prompt, max_new_tokens=1)
    with ScoreReader(open_bundle(bundle("next", max_images=2))) as reader:
        alone = reader.read(pictures[0], PROBE.prompt, max_new_tokens=1)
    np.testing.assert_array_equal(again.stages[0].scores, alone.stages[0].scores)
    np.testing.assert_array_equal(again.stages[1].scores, alone.stages[1].scores)


def test_tokens_that_always_stay_have_no_score_in_json() -> None:
    stage1 = StageScores(1, np.array([0.5, np.nan, 0.25], np.float32), np.array([0, 1]))
    timings = Timings(0.0, 0.0, (), 0.0)
    result = Result("", (), "stop", (0, 1), (0,), 0, timings)
    scores = Scores((stage1, StageScores(2, np.array([2, 1], np.float32), np.array([0]))), result)
    written = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert written["stages"] == [
        {"stage": 1, "scores": [0.5, None, 0.25], "kept": [0, 1]},
        {"stage": 2, "scores": [2.0, 1.0], "kept": [0]},
    ]


def test_statistics_leave_out_what_always_stays() -> None:
    ranked = StageScores(1, np.array([1, 1, 2, 4], np.float32), np.array([2, 3]))
    among = StageScores(1, np.array([np.nan, 1, 1, np.nan, 2, 4], np.float32), np.array([0, 3, 4, 5]))
    assert statistics(among, PROBE) == statistics(ranked, PROBE)


@pytest.mark.parametrize("preset", CUT)
def test_the_check_ranks_patches_of_cut_pictures(bundle: BundleOf, preset: str) -> None:
    """Newlines would be the highest by far, and their spread would hide scores that are all alike."""
    probes = [Probe("wide", (noise(120, 60),), "What?"), Probe("tiny", (noise(20, 20),), "What?")]
    report = check_scores(bundle(preset, max_images=2), probes=probes, keep=(30, 20))
    assert report.passed
    rows = [(stage.picture, stage.stage) for stage in report.stages]
    assert rows == [(probe.name, stage) for probe in probes for stage in (1, 2, 2)]
    for stage in report.stages:
        assert stage.high < 20
        assert stage.kept <= stage.tokens == sum(stage.histogram)
    first = report.stages[0]
    with ScoreReader(open_bundle(bundle(preset, max_images=2))) as reader:
        [image] = reader.pipeline.prepare(probes[0].pictures)
    assert first.tokens == image.packing.tokens - image.packing.newlines


def test_statistics() -> None:
    probe = Probe("p", PROBE.pictures, "?")
    found = statistics(StageScores(1, np.array([1, 1, 2, 4], np.float32), np.array([2, 3])), probe)
    assert (found.low, found.median, found.high) == (0.5, 0.75, 2.0)
    assert (found.tokens, found.kept, found.kept_share) == (4, 2, 0.75)
    assert found.spread == pytest.approx(6**0.5 / 4)
    assert found.effective_tokens == pytest.approx(2**1.75)
    # Half octaves, the mean between bins 7 and 8: 0.5 is two below it, 1 and 2 open a bin each.
    assert found.histogram == (0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 1, 0, 0, 0, 0, 0)
    assert not found.uniform


@pytest.mark.parametrize("value", [0.0, 1e-3])
def test_statistics_of_equal_scores(value: float) -> None:
    found = statistics(StageScores(1, np.full(9, value, np.float32), np.arange(3)), PROBE)
    assert found.uniform
    assert found.effective_tokens == pytest.approx(9)
    assert found.kept_share == pytest.approx(1 / 3)


def test_what_has_no_scores(bundle: BundleOf) -> None:
    with pytest.raises(SettingsError, match="built with prune=False: it ranks no tokens"):
        ScoreReader(open_bundle(bundle("mha", prune=False)))
    with pytest.raises(BundleError, match="is bfloat16, which ONNX Runtime cannot run"):
        ScoreReader(open_bundle(bundle("mha", dtype="bfloat16")))


def test_scores_that_are_not_finite(bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ScoreReader(open_bundle(bundle("mha")))
    session = reader._session

    def run(graph: str, *rest: Any) -> Any:
        outputs = ScoringSession.run(session, graph, *rest)
        session.patches[0][0] = np.nan
        return outputs

    monkeypatch.setattr(session, "run", run)
    with pytest.raises(BundleError, match="some scores are inf or NaN; run `star-export check` without"):
        reader.read(PROBE.pictures, PROBE.prompt, max_new_tokens=1)
    monkeypatch.undo()
    reader.pipeline.image_spec = replace(reader.pipeline.image_spec, rescale_factor=float("nan"))
    with pytest.raises(NonFiniteError, match="star-export check names the first tensor"):
        reader.read(PROBE.pictures, PROBE.prompt, max_new_tokens=1)
    with pytest.raises(InputError, match="the prompt is empty"):
        reader.read(PROBE.pictures, " ")
