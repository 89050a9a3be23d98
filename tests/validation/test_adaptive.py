"""A last stage that keeps the fewest tokens whose scores are a share of all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import star_export
from star_export.build import BuildOptions, build
from star_export.contract import ALWAYS_KEPT
from star_export.errors import SettingsError
from star_export.graphs.decoder import fewest
from star_export.serving.scheduler import Scheduler
from star_export.validation.check import check_bundle
from star_export.validation.probes import make_probes
from star_export.validation.verdicts import fewest_of_mass

MOST, MASS = 60, 0.2


@pytest.mark.parametrize("mass", [0.01, 0.3, 0.77, 0.999])
@pytest.mark.parametrize("seed", range(5))
def test_fewest(mass: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    visual = random.random(12) < 0.7
    scores = np.where(visual, random.integers(1, 6, 12) / 8, ALWAYS_KEPT).astype(np.float32)  # with ties
    total = np.float32(scores[visual].sum() + random.random())  # of tokens that were not chosen too
    positions = np.sort(random.choice(40, 12, replace=False))
    best = sorted(np.flatnonzero(visual), key=lambda i: (-scores[i], i))
    wanted: list[int] = []
    while len(wanted) < len(best) and scores[wanted].sum() < mass * total:
        wanted.append(best[len(wanted)])
    stays = ~visual | np.isin(np.arange(12), wanted)

    x = torch.arange(12.0)[None, :, None]
    given = torch.from_numpy(positions)[None], torch.from_numpy(scores)[None], torch.tensor(total)
    rows, moved, kept, last = fewest(x, *given, mass)
    order = [*np.flatnonzero(stays), *np.flatnonzero(~stays)]
    assert rows[0, :, 0].tolist() == order
    assert moved[0].tolist() == positions[order].tolist()
    assert kept[0].tolist() == [*positions[stays], *[-1] * (~stays).sum()]
    assert last.tolist() == [stays.sum() - 1]


def test_fewest_of_mass() -> None:
    scores = np.array([1, 4, 3, 2], np.float32)  # sums 0.4, 0.7, 0.9, 1
    for mass, count in ((0.3, 1), (0.5, 2), (0.8, 3), (0.95, 4)):
        for found in (1, 4):
            assert fewest_of_mass(scores, 4, mass, found=found, tolerance=1e-4) == count
    assert fewest_of_mass(scores, 2, 0.95, found=2, tolerance=1e-4) == 2
    for found in (2, 3):  # rounding alone decides
        assert fewest_of_mass(scores, 4, 0.7, found=found, tolerance=1e-4) == found


@pytest.fixture(scope="module")
def adapting(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = BuildOptions(
        model=str(checkpoint("mha")),
        output=tmp_path_factory.mktemp("adapting") / "bundle",
        schedule=f"300@0,{MOST}@3",
        stage2="text",  # spread over many tokens
        keep_mass=MASS,
        max_text_tokens=128,
        max_new_tokens=16,
    )
    return build(options).folder


def test_parity(adapting: Path) -> None:
    report = check_bundle(adapting, probes=3)
    assert report.passed, [stage for case in report.cases for stage in case.stages]


def test_each_picture_keeps_what_it_needs(adapting: Path) -> None:
    probes = make_probes(4)
    with star_export.load(adapting) as pipeline:
        answers = [pipeline.generate(p.pictures, p.prompt, max_new_tokens=6).result() for p in probes]
        few = [pipeline.generate(p.pictures, p.prompt, keep=2, max_new_tokens=6).result() for p in probes]
        counts = [len(answer.stage2_indices) for answer in answers]
        assert 1 <= min(counts) < max(counts) <= MOST
        assert [len(answer.stage2_indices) for answer in few] == [min(2, count) for count in counts]
        requests = [pipeline.request(p.pictures, p.prompt, max_new_tokens=6) for p in probes]
        with Scheduler(pipeline, slots=2) as scheduler:  # caches of different lengths side by side
            served = [ticket.answer() for ticket in [scheduler.submit(request) for request in requests]]
    assert [answer.token_ids for answer in served] == [answer.token_ids for answer in answers]
    assert [answer.usage.stage2_tokens for answer in served if answer.usage] == counts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_mass": 1.0}, "keep_mass must be between 0 and 1, got 1"),
        ({"schedule": "64@0"}, "is about the last stage of a schedule, in the decoder"),
        ({"prune": False}, "keep_mass has no meaning with prune=False"),
    ],
)
def test_refused(
    options: dict[str, object], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = {"model": str(checkpoint("mha")), "output": tmp_path / "bundle", "keep_mass": 0.5} | options
    with pytest.raises(SettingsError, match=message):
        build(BuildOptions(**asked))  # type: ignore[arg-type]
