"""Real TensorRT-RTX builds of what other schedules than STAR's need: every score, and more layer groups."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from star_export.contract import DECODE, PREFILL, VISION
from star_export.engines.tensorrt.builder import (
    MOST_RTX_STAGES,
    EngineOptions,
    build_apart,
    check_options,
)
from star_export.engines.tensorrt.profiles import engine_profiles
from star_export.engines.tensorrt.request import EngineRequest
from star_export.errors import SettingsError
from star_export.specs import STAGE1_SCORES, STAGE2_SCORES, ExportSpec, ModelSpec, with_mass
from tests.graphs.random_graphs import export_random, small, small_spec, staged_spec
from tests.shapes import NEXT, ONEVISION, WHOLE


def builds(spec: ExportSpec, graph: str, folder: Path, caplog: pytest.LogCaptureFixture) -> bool:
    """Whether there is an engine, of which TensorRT says nothing unexpected."""
    request = EngineRequest(
        backend="tensorrt-rtx",
        graph=str(export_random(spec, graph, folder)),
        output=str(folder / f"{graph}.engine"),
        profiles=engine_profiles(spec, max_batch=2)[graph],
        targets=("sm89",),
    )
    with caplog.at_level(logging.WARNING, "star_export.tensorrt"):
        build_apart(request, graph)
    said = [
        record.getMessage() for record in caplog.records if record.name.startswith("star_export.tensorrt")
    ]
    assert said == []
    return Path(request.output).stat().st_size > 1000


def inside(count: int) -> ExportSpec:
    """That many stages inside the decoder, each with another score."""
    scores = enumerate(list(STAGE2_SCORES)[:count], start=1)
    spec = staged_spec(
        small(WHOLE, layers=count + 1), *((layer, score, 14 - layer) for layer, score in scores)
    )
    assert len(spec.groups) == count + 1
    return spec


@pytest.mark.parametrize(
    ("graph", "count"), [(PREFILL, len(STAGE2_SCORES)), (DECODE, 2), (DECODE, MOST_RTX_STAGES)]
)
def test_every_score_inside_the_decoder_and_many_groups(
    graph: str, count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert builds(inside(count), graph, tmp_path, caplog)


def test_more_groups_than_it_builds_are_refused_at_once() -> None:
    options = EngineOptions(backend="tensorrt-rtx")
    check_options(options, inside(MOST_RTX_STAGES))
    with pytest.raises(SettingsError, match=r"6 stages inside the decoder, .* builds .* at most 5;"):
        check_options(options, inside(MOST_RTX_STAGES + 1))


def test_a_last_stage_that_adapts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Decode is that of any other bundle."""
    spec = inside(1)
    assert builds(replace(spec, schedule=with_mass(spec.schedule, 0.9)), PREFILL, tmp_path, caplog)


@pytest.mark.parametrize("graph", [VISION, PREFILL, DECODE])
def test_proportional_attention(graph: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = staged_spec(small(WHOLE, layers=3), (0, "spread", 10), (1, "text-peaks", 6), (2, "text", 4))
    assert builds(replace(spec, proportional=True), graph, tmp_path, caplog)


@pytest.mark.parametrize("score", STAGE1_SCORES)
def test_every_score_before_the_decoder(score: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert builds(staged_spec(small(WHOLE), (0, score, 10)), VISION, tmp_path, caplog)


@pytest.mark.parametrize(
    ("model", "share"),
    [(NEXT, None), (ONEVISION, None), pytest.param(ONEVISION, 0.7, marks=pytest.mark.slow)],
)
def test_a_number_and_a_share_of_pictures_in_tiles(
    model: ModelSpec, share: float | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiles = small(model)
    whole = small_spec(tiles, prune=False).largest_image
    tokens = 20 if share is None else int(share * whole)
    assert builds(staged_spec(tiles, (0, "peaks", tokens), share=share), VISION, tmp_path, caplog)
