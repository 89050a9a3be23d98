"""``check`` of bundles with quantised weights: the graphs exactly, and what users run within its limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from star_export.engines import Runtime
from star_export.graphs import quantize as arithmetic
from star_export.validation import check as checking
from star_export.validation.check import check_bundle
from star_export.validation.probes import make_probes
from star_export.validation.verdicts import divergence

#: Those of which every run proves one type, signed and not, `make test-slow` all; others' unsigned ones
#: are quickly in test_prequantised.
PRESETS = (
    "mha", "gqa", "vicuna", "full", "feature-layers", "interleave", "next", "next-mistral", "next-llama3",
    "onevision", "deep",
)  # fmt: skip
QUICK = {("mha", "int4"), ("gqa", "uint8")}


@pytest.mark.parametrize(
    ("preset", "kind"),
    [
        pytest.param(preset, kind, marks=() if (preset, kind) in QUICK else pytest.mark.slow)
        for preset in PRESETS
        for kind in ("int4", "int8", "uint4", "uint8")
    ],
)
def test_every_family(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], preset: str, kind: str
) -> None:
    report = check_bundle(
        bundle(preset, quantize=kind), probes=make_probes(1), max_new_tokens=4, runtime=Runtime(threads=1)
    )
    assert report.passed, report
    [case] = report.cases
    stages = {stage.stage: stage for stage in case.stages}
    assert stages["decode_logits"].error < stages["decode_logits"].tolerance == 1e-4  # that of float32
    assert 0 < stages["divergence"].error < stages["divergence"].tolerance


@pytest.mark.parametrize(
    "preset",
    [
        "gqa",  # tied
        *(
            pytest.param(preset, marks=pytest.mark.slow)
            for preset in (
                "mha", "vicuna", "full", "feature-layers", "interleave", "next", "next-mistral",
                "next-llama3", "onevision",
            )
        ),
    ],
)  # fmt: skip
def test_rows_of_tokens(bundle: Callable[..., Path], preset: str) -> None:
    report = check_bundle(
        bundle(preset, quantize="int8", quantize_embedding=True),
        probes=make_probes(1),
        max_new_tokens=4,
        runtime=Runtime(threads=1),
    )
    assert report.passed, report


@pytest.mark.parametrize("fault", ["scale", "users"])
def test_faults_show(bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Weights that the graphs do not have; and a session that users run, and nobody compares exactly."""
    if fault == "scale":
        given = arithmetic.dequantize
        monkeypatch.setattr(
            "star_export.validation.reference.dequantize", lambda *parts: 1.01 * given(*parts)
        )
    else:
        open_session = checking.open_session

        def users(opened: Any, runtime: Runtime) -> Any:
            session = open_session(opened, runtime)
            if not runtime.exact:
                run = session.run
                session.run = lambda graph, feeds, caches=None: run(graph, wrong(graph, feeds), caches)
            return session

        def wrong(graph: str, feeds: dict[str, Any]) -> dict[str, Any]:
            return feeds | ({"input_ids": np.roll(feeds["input_ids"] + 1, 1)} if graph == "decode" else {})

        monkeypatch.setattr(checking, "open_session", users)
    report = check_bundle(
        bundle("mha", quantize="int8"), probes=make_probes(1), max_new_tokens=4, runtime=Runtime(threads=1)
    )
    failed = {stage.stage for case in report.cases for stage in case.stages if stage.status == "fail"}
    assert not report.passed
    assert ("divergence" in failed) == (fault == "users")


def test_divergence() -> None:
    expected, found = np.array([0.0, 1.0, 3.0], np.float32), np.array([5.0, 6.0, 8.0], np.float32)
    assert divergence(found, expected) == pytest.approx(0.0, abs=1e-9)
    other = np.array([0.0, 2.0, 1.0], np.float32)
    first, second = (torch.tensor(values).log_softmax(0) for values in (expected, other))
    assert divergence(other, expected) == pytest.approx(
        float((first.exp() * (first - second)).sum()), rel=1e-5
    )
