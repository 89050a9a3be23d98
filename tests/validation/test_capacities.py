"""Engines for smaller KV caches that compute something else are found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_export.answer.pipeline import Pipeline, load
from star_export.contract import DECODE, PREFILL
from star_export.validation.capacities import compare_capacities
from star_export.validation.probes import make_probes


@pytest.fixture(scope="module")
def pipeline(bundle: Callable[..., Path]) -> Pipeline:
    return load(bundle("mha"), threads=1)


def test_sizes_that_a_probe_fits_into(pipeline: Pipeline) -> None:
    found = compare_capacities(pipeline, make_probes(2), (1, 64, 96))
    assert [(stage.stage, stage.status) for stage in found] == [
        ("decode_room_64", "pass"),
        ("decode_room_96", "pass"),
    ]


@pytest.mark.parametrize("graph", [PREFILL, DECODE])
def test_what_is_wrong_in_smaller_caches_is_found(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    run, whole = pipeline.session.run, pipeline.spec.capacities[0]

    def faulty(name: str, feeds: Any, caches: Any = None) -> Any:
        small = caches is not None and caches.values["past_key_values.0.key"].shape()[2] < whole
        if small and name == graph:
            feeds = feeds | {"input_ids": feeds["input_ids"][..., ::-1] + (name == DECODE)}
        return run(name, feeds, caches)

    monkeypatch.setattr(pipeline.session, "run", faulty)
    assert [stage.status for stage in compare_capacities(pipeline, make_probes(1), (64,))] == ["fail"]
