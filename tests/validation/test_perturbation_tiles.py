"""The check fails when something about tiles, newlines or several pictures is wrong.

As test_perturbation.py, on a request of two pictures of LLaVA-NeXT and one large one of OneVision.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from star_export.answer.pipeline import Pipeline
from star_export.contract import DECODE, INPUT_IDS, POSITION_IDS
from star_export.engines import Runtime, open_session
from star_export.validation.probes import make_probes
from tests.validation.lab import (
    Edit,
    Lab,
    changed_weight,
    constant,
    first_failure,
    make_lab,
    nodes,
    producer,
)

LabOf = Callable[[str], Lab]


@pytest.fixture(scope="module")
def lab_of(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> LabOf:
    made: dict[str, Lab] = {}

    def get(preset: str) -> Lab:
        if preset not in made:
            probes = make_probes(4, max_images=3)
            made[preset] = make_lab(
                bundle(preset, max_images=3),
                checkpoint(preset),
                tmp_path_factory.mktemp(preset),
                probes[3] if preset == "next" else probes[0],
                keep=24,
            )
        return made[preset]

    return get


@pytest.mark.parametrize("preset", ["next", "onevision"])
def test_nothing_broken(lab_of: LabOf, preset: str) -> None:
    lab = lab_of(preset)
    assert lab.failed() == []
    (grid, *_) = (image.packing.grid for image in lab.pipeline().prepare(lab.probe.pictures))
    assert grid is not None
    assert grid.resized == (preset == "onevision")


@pytest.mark.parametrize("preset", ["next", "onevision"])
def test_another_newline(lab_of: LabOf, preset: str) -> None:
    lab = lab_of(preset)
    with changed_weight(lab.bundle.path("graphs/vision.safetensors"), "image_newline"):
        assert lab.failed()[0] == "vision_features"


def neighbours_swapped(index: np.ndarray) -> np.ndarray:
    """The last two patches of a row change places."""
    index = index.copy()
    newline = int(np.argmax(index.reshape(len(index), -1)[:, 0] < 0))
    index[[newline - 2, newline - 1]] = index[[newline - 1, newline - 2]]
    return index


def newline_first(index: np.ndarray) -> np.ndarray:
    index = index.copy()
    newline = int(np.argmax(index.reshape(len(index), -1)[:, 0] < 0))
    index[[newline, newline - 1]] = index[[newline - 1, newline]]
    return index


@pytest.mark.parametrize(
    ("preset", "name", "change"),
    [
        ("next", "packed_index", neighbours_swapped),
        ("next", "packed_index", newline_first),
        ("onevision", "packed_index", neighbours_swapped),
        ("onevision", "packed_index", newline_first),
        ("onevision", "packed_weights", lambda weights: np.ascontiguousarray(weights[:, ::-1])),
        ("onevision", "packed_weights", np.round),  # the nearest patch instead of the mean
    ],
)
def test_another_packing(
    lab_of: LabOf, monkeypatch: pytest.MonkeyPatch, preset: str, name: str, change: Callable[[Any], Any]
) -> None:
    lab = lab_of(preset)
    session = open_session(lab.bundle, Runtime(threads=1))
    run = session.run

    def repacked(graph: str, feeds: dict[str, Any], caches: Any = None) -> Any:
        return run(graph, {k: change(v) if k == name else v for k, v in feeds.items()}, caches)

    monkeypatch.setattr(session, "run", repacked)
    assert set(lab.failed(Pipeline(lab.bundle, session))[:1]) <= {"vision_features", "stage1_set"}
    assert lab.failed(Pipeline(lab.bundle, session))


def row_slice(model: onnx.ModelProto) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """What cuts CLS off the rows of the attention map, and what off its columns."""
    (mean,) = nodes(model, "ReduceMean")
    columns = producer(model, mean.input[0])
    return producer(model, columns.input[0]), columns


def score_with_the_row_of_cls(model: onnx.ModelProto) -> None:
    rows, columns = row_slice(model)
    assert (rows.op_type, columns.op_type) == ("Slice", "Slice")
    rows.input[1] = constant(model, [0])


def score_the_patch_before(model: onnx.ModelProto) -> None:
    _, columns = row_slice(model)
    columns.input[1], columns.input[2] = constant(model, [0]), constant(model, [-1])


def let_newlines_be_dropped(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor) if not tensor.data_location else np.zeros(1)
        if values.dtype == np.float32 and values.size and (values == np.float32(1e30)).all():
            tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))


@pytest.mark.parametrize("edit", [score_with_the_row_of_cls, score_the_patch_before, let_newlines_be_dropped])
def test_other_scores(lab_of: LabOf, edit: Edit) -> None:
    assert first_failure(lab_of("next"), "vision", edit) == "stage1_set"


def test_pictures_in_another_order(lab_of: LabOf, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lab_of("next")
    pipeline = lab.pipeline()
    prepare, encode = pipeline.prepare, pipeline.steps.encode_images
    monkeypatch.setattr(pipeline.steps, "encode_images", lambda *given: encode(*given)[::-1])
    assert lab.failed(pipeline)[0] in ("vision_features", "stage1_set")
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "prepare", lambda pictures: prepare(pictures)[::-1])
    assert lab.failed(pipeline)[0] == "preprocessing"


def test_rows_behind_the_first_picture(lab_of: LabOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is the text behind the last one."""
    lab = lab_of("next")
    pipeline = lab.pipeline()
    tokenize = pipeline.tokenize

    def early(*given: Any, **options: Any) -> Any:
        tokens = tokenize(*given, **options)
        end = tokens.image_positions[0][np.flatnonzero(np.diff(tokens.image_positions[0]) > 1)[0]] + 1
        rows = np.setdiff1d(np.arange(end, tokens.input_ids.shape[1]), tokens.image_positions)
        return replace(tokens, query_positions=rows[None])

    monkeypatch.setattr(pipeline, "tokenize", early)
    assert lab.failed(pipeline) == ["preprocessing"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (POSITION_IDS, lambda positions: np.repeat(positions[:, :1], positions.shape[1], axis=1)),
        (INPUT_IDS, lambda ids: np.concatenate([ids[:, 1:], ids[:, :1]], axis=1)),
    ],
)
def test_tokens_appended_wrongly(
    lab_of: LabOf, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]
) -> None:
    lab = lab_of("onevision")
    session = open_session(lab.bundle, Runtime(threads=1))
    run = session.run

    def wrong(graph: str, feeds: dict[str, Any], caches: Any = None) -> Any:
        several = graph == DECODE and feeds[INPUT_IDS].shape[1] > 1
        return run(graph, {**feeds, name: change(feeds[name])} if several else feeds, caches)

    monkeypatch.setattr(session, "run", wrong)
    assert lab.failed(Pipeline(lab.bundle, session)) == ["append_logits"]
