"""Bundles whose attention counts a kept token for what it stands for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import star_export
from star_export.answer.steps import DecodeState, Steps, VisionOutput
from star_export.build import BuildOptions, build
from star_export.engines.onnxruntime import OnnxRuntimeCaches
from star_export.engines.session import on_host
from star_export.errors import SettingsError
from star_export.preprocessing import TokenizedPrompt
from star_export.serving.scheduler import Scheduler
from star_export.validation.check import check_bundle
from star_export.validation.counts import compare_counts
from star_export.validation.probes import make_probes
from tests.validation.lab import Lab, make_lab

SETTINGS: dict[str, Any] = {"proportional": True, "max_text_tokens": 128, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("proportional") / "bundle"
    return build(
        BuildOptions(model=str(checkpoint("mha")), output=output, schedule="300@0,60@2,20@3", **SETTINGS)
    ).folder


def test_parity(folder: Path) -> None:
    report = check_bundle(folder, probes=2, keep=[20, (90, 50, 7)])
    assert report.passed, [stage for case in report.cases for stage in case.stages]
    for case in report.cases:
        assert {f"stage{n}_{what}" for n in (1, 2, 3) for what in ("set", "counts")} <= {
            stage.stage for stage in case.stages
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "schedule", "dtype"),
    [
        ("gqa", "100@0,20@2", "float16"),
        ("full", "40@0", "float32"),
        ("next", "30@0,20@1,9@2", "float32"),
        ("onevision", "70%@0,40%@1,20%@2", "float16"),
    ],
)
def test_every_family(
    preset: str, schedule: str, dtype: Any, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    options = BuildOptions(
        model=str(checkpoint(preset)), output=tmp_path / "bundle", schedule=schedule, dtype=dtype, **SETTINGS
    )
    report = check_bundle(build(options).folder, probes=2)
    assert report.passed, [stage for case in report.cases for stage in case.stages]


@pytest.fixture(scope="module")
def lab(folder: Path, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(folder, checkpoint("mha"), tmp_path_factory.mktemp("lab"), make_probes(1)[0], keep=20)


def test_counts_of_another_picture_are_noticed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stands for those of its neighbour: every other channel is right."""
    prefill = Steps.prefill

    def shifted(
        steps: Steps, tokens: TokenizedPrompt, *visions: VisionOutput, **settings: Any
    ) -> DecodeState:
        wrong = [replace(vision, features=_rolled(on_host(vision.features))) for vision in visions]
        return prefill(steps, tokens, *wrong, **settings)

    monkeypatch.setattr(Steps, "prefill", shifted)
    assert lab.failed()[0] == "stage1_counts"


def _rolled(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features[..., :-1], np.roll(features[..., -1:], 1, axis=1)], axis=-1)


def test_decode_that_forgets_counts_is_noticed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Steps.decode

    def forgetful(steps: Steps, state: DecodeState, *tokens: int) -> None:
        assert isinstance(state.caches, OnnxRuntimeCaches)
        state.caches.values["past_key_bias.late"].numpy()[:] = 0  # on the CPU, the memory itself
        decode(steps, state, *tokens)

    monkeypatch.setattr(Steps, "decode", forgetful)
    assert lab.failed()[0] == "decode_logits"


def test_answers_side_by_side_are_those_of_one_at_a_time(folder: Path) -> None:
    probes = make_probes(4)
    budgets = [20, 3, (100, 40, 9), (300, 60, 20)]
    with star_export.load(folder) as pipeline:
        requests = [
            pipeline.request(probe.pictures, probe.prompt, keep=keep, max_new_tokens=6)
            for probe, keep in zip(probes, budgets, strict=True)
        ]
        alone = [
            pipeline.generate(probe.pictures, probe.prompt, keep=keep, max_new_tokens=6).result().token_ids
            for probe, keep in zip(probes, budgets, strict=True)
        ]
        with Scheduler(pipeline, slots=2) as scheduler:
            served = [ticket.answer() for ticket in [scheduler.submit(request) for request in requests]]
    assert [answer.token_ids for answer in served] == alone


def test_compare_counts() -> None:
    expected = np.array([4, 1, 5], np.float32)
    found = np.log(np.array([4, 2, 4], np.float32))
    result = compare_counts("stage1_counts", found, expected, 0.05)
    assert (result.status, result.error) == ("fail", pytest.approx(0.1))
    assert compare_counts("stage1_counts", found, expected, 0.2).status == "pass"
    assert compare_counts("stage1_counts", np.array([0, np.inf, 0]), expected, 0.2).status == "fail"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": False}, "proportional has no meaning with prune=False"),
        ({"schedule": "60@3"}, "proportional needs a stage before the decoder"),
        ({"schedule": "300@0,60@3", "keep_mass": 0.5}, "proportional can't be had with keep_mass"),
    ],
)
def test_refused(
    options: dict[str, object], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = {"model": str(checkpoint("mha")), "output": tmp_path / "bundle", "proportional": True} | options
    with pytest.raises(SettingsError, match=message):
        build(BuildOptions(**asked))  # type: ignore[arg-type]
