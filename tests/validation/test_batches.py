"""Batches equal singles, and faults that only a batch has are found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_export.answer.pipeline import Pipeline, load
from star_export.contract import DECODE, POSITION_IDS
from star_export.engines.onnxruntime import OnnxRuntimeCaches
from star_export.errors import SettingsError
from star_export.validation.batches import compare_batches
from star_export.validation.probes import make_probes

Edit = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def pipeline(bundle: Callable[..., Path]) -> Pipeline:
    return load(bundle("mha"), threads=1)


@pytest.mark.parametrize(("most", "sizes"), [(None, (2, 4)), (2, (2,)), (3, (2, 3)), (1, ())])
def test_the_sizes_that_are_decoded(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, most: int | None, sizes: tuple[int, ...]
) -> None:
    monkeypatch.setattr(pipeline.session, "max_batch", most)
    found = compare_batches(pipeline, make_probes(1))
    assert [stage.stage for stage in found] == [f"decode_batch_{size}" for size in sizes]
    assert all(stage.status == "pass" for stage in found), found


def test_caches_that_cannot_be_used_one_by_one(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorRT's, where a sequence takes no multiple of what it aligns to."""

    def refuse(*_: object) -> None:
        raise SettingsError("TensorRT cannot use each alone")

    monkeypatch.setattr(OnnxRuntimeCaches, "rows", refuse)
    assert compare_batches(pipeline, make_probes(1)) == ()


def test_unpruned(bundle: Callable[..., Path]) -> None:
    found = compare_batches(load(bundle("mha", prune=False), threads=1), make_probes(2))
    assert [stage.status for stage in found] == ["pass", "pass"]


def of_the_first_row(name: str) -> Edit:
    return lambda feeds: {**feeds, name: feeds[name][:1].repeat(len(feeds[name]), axis=0)}


def reversed_rows(name: str) -> Edit:
    return lambda feeds: {**feeds, name: feeds[name][::-1]}


@pytest.mark.parametrize(
    "edit",
    [
        of_the_first_row("early_lengths"),
        of_the_first_row("late_lengths"),
        of_the_first_row(POSITION_IDS),
        reversed_rows("input_ids"),
    ],
)
def test_a_runtime_that_is_wrong_for_several_is_found(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, edit: Edit
) -> None:
    """One sequence alone is right."""
    run = pipeline.session.run

    def faulty(graph: str, feeds: Any, caches: Any = None) -> Any:
        several = graph == DECODE and len(feeds[POSITION_IDS]) > 1
        return run(graph, edit(feeds) if several else feeds, caches)

    monkeypatch.setattr(pipeline.session, "run", faulty)
    assert {stage.status for stage in compare_batches(pipeline, make_probes(1))} == {"fail"}


@pytest.mark.parametrize("row", [0, 1])
def test_a_row_that_is_not_written_is_found(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    """What the size before has left in the caches does not stand in for it."""
    run = pipeline.session.run

    def forgetful(graph: str, feeds: Any, caches: Any = None) -> Any:
        if graph != DECODE or len(feeds[POSITION_IDS]) == 1:
            return run(graph, feeds, caches)
        before = {name: value.numpy()[row].copy() for name, value in caches.values.items()}
        outputs = run(graph, feeds, caches)
        for name, value in caches.values.items():
            value.numpy()[row] = before[name]
        return outputs

    monkeypatch.setattr(pipeline.session, "run", forgetful)
    assert {stage.status for stage in compare_batches(pipeline, make_probes(1))} == {"fail"}
