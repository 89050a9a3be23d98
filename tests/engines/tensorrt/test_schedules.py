"""Real TensorRT-RTX builds of what other schedules than STAR's need: every score, and more layer groups."""

import logging
from pathlib import Path

import pytest

from star_export.contract import DECODE, PREFILL, VISION
from star_export.engines.tensorrt.builder import build_apart
from star_export.engines.tensorrt.profiles import engine_profiles
from star_export.engines.tensorrt.request import EngineRequest
from star_export.specs import STAGE1_SCORES, STAGE2_SCORES, ExportSpec, ModelSpec
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


#: Stages inside the decoder of which TensorRT-RTX 1.7.1 builds decode; of one more it says "uses before def".
MOST_STAGES = 5


@pytest.mark.parametrize(
    ("graph", "count"), [(PREFILL, len(STAGE2_SCORES)), (DECODE, 2), (DECODE, MOST_STAGES)]
)
def test_every_score_inside_the_decoder_and_many_groups(
    graph: str, count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = list(STAGE2_SCORES)[:count]
    stages = [(layer, score, 14 - layer) for layer, score in enumerate(scores, start=1)]
    spec = staged_spec(small(WHOLE, layers=count + 1), *stages)
    assert len(spec.groups) == count + 1
    assert builds(spec, graph, tmp_path, caplog)


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
