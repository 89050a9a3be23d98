"""Scores read out of the graphs: those of PyTorch, the reason for what was kept, and not uniform."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from star_export.bundle import open_bundle
from star_export.contract import VISION
from star_export.errors import BundleError, InputError, NonFiniteError, SettingsError
from star_export.show.scores import ScoreReader, ScoringSession, StageScores, statistics
from star_export.validation.probes import Probe, make_probes
from star_export.validation.reference import Reference

BundleOf = Callable[..., Path]
[PROBE] = make_probes(1)


@pytest.mark.parametrize(("preset", "dtype", "close"), [("mha", "float32", 1e-5), ("gqa", "float16", 2e-2)])
def test_scores_are_those_of_pytorch(
    bundle: BundleOf, checkpoint: Callable[[str], Path], preset: str, dtype: str, close: float
) -> None:
    opened = open_bundle(bundle(preset, dtype=dtype))
    reader = ScoreReader(opened)
    found = reader.read(PROBE.pictures[0], PROBE.prompt, max_new_tokens=1)
    reference = Reference(checkpoint(preset))
    reference.round_weights(opened.spec.weight_dtype)
    (image,) = images = reader.pipeline.prepare(PROBE.pictures)
    tokens = reader.pipeline.tokenize(PROBE.prompt, images)
    (seen,) = reference.encode_images({"pixel_values": torch.from_numpy(image.pixels)})
    expected = reference.prefill(
        torch.from_numpy(tokens.input_ids[0]),
        seen.features[torch.from_numpy(found.stage1.kept)],
        torch.from_numpy(tokens.image_positions[0]),
        torch.from_numpy(tokens.query_positions[0]),
        stages=[(opened.spec.decoder_stages[0].after_layer, torch.arange(tokens.input_ids.shape[1]))],
    )
    for stage, scores in ((found.stage1, seen.scores), (found.stage2, expected.scores[0])):
        assert stage.scores.dtype == np.float32
        np.testing.assert_allclose(stage.scores, scores.numpy(), rtol=close)


@pytest.mark.parametrize("keep", [29, 288])
def test_the_highest_scores_are_kept(bundle: BundleOf, keep: int) -> None:
    found = ScoreReader(open_bundle(bundle("mha"))).read(
        PROBE.pictures[0], PROBE.prompt, keep=keep, max_new_tokens=1
    )
    for stage, count in ((found.stage1, 518), (found.stage2, keep)):
        best = np.argsort(-stage.scores, kind="stable")[:count]
        assert stage.kept.tolist() == sorted(best.tolist())
    assert len(found.stage2.scores) == 518


def test_statistics() -> None:
    probe = Probe("p", PROBE.pictures, "?")
    found = statistics(StageScores(np.array([1, 1, 2, 4], np.float32), np.array([2, 3])), probe, 2)
    assert (found.low, found.median, found.high) == (0.5, 0.75, 2.0)
    assert (found.tokens, found.kept, found.kept_share) == (4, 2, 0.75)
    assert found.spread == pytest.approx(6**0.5 / 4)
    assert found.effective_tokens == pytest.approx(2**1.75)
    # Half octaves, the mean between bins 7 and 8: 0.5 is two below it, 1 and 2 open a bin each.
    assert found.histogram == (0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 1, 0, 0, 0, 0, 0)
    assert not found.uniform


@pytest.mark.parametrize("value", [0.0, 1e-3])
def test_statistics_of_equal_scores(value: float) -> None:
    found = statistics(StageScores(np.full(9, value, np.float32), np.arange(3)), PROBE, 1)
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
        session.scores[VISION][0] = np.nan
        return outputs

    monkeypatch.setattr(session, "run", run)
    with pytest.raises(BundleError, match="some scores are inf or NaN; run `star-export check` without"):
        reader.read(PROBE.pictures[0], PROBE.prompt, max_new_tokens=1)
    monkeypatch.undo()
    reader.pipeline.image_spec = replace(reader.pipeline.image_spec, rescale_factor=float("nan"))
    with pytest.raises(NonFiniteError, match="star-export check names the first tensor"):
        reader.read(PROBE.pictures[0], PROBE.prompt, max_new_tokens=1)
    with pytest.raises(InputError, match="the prompt is empty"):
        reader.read(PROBE.pictures[0], " ")
