"""A short run of ``make fuzz``, and that it would notice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.answer import request

from .cases import CASES, World, make_world
from .run import run_case, summary

SEED = 5


@pytest.fixture(scope="module")
def world(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(bundle("mha"), tmp_path_factory.mktemp("fuzz"))


def test_damaged_input_is_answered_or_refused(world: World) -> None:
    outcomes = [run_case(world, SEED, number) for number in range(250)]
    assert [f"case {n}: {outcome}" for n, outcome in enumerate(outcomes) if outcome.fault] == []
    assert {outcome.kind for outcome in outcomes} == {case.__name__ for case in CASES}
    assert 0 < sum(outcome.refused is None for outcome in outcomes) < len(outcomes)


def test_a_case_is_repeated_by_its_seed_and_number(world: World) -> None:
    def run(seed: int) -> list[str]:
        return [str(run_case(world, seed, number)) for number in range(30)]

    assert run(SEED) == run(SEED) != run(SEED + 1)


def test_faults_are_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*_: object) -> None:
        raise TypeError("planted")

    monkeypatch.setattr(request, "read_preprocessing", planted)
    outcomes = [run_case(world, SEED, number) for number in range(40)]
    faults = [outcome for outcome in outcomes if outcome.fault]
    assert {str(outcome) for outcome in faults} <= {f"{case.__name__}: TypeError: planted" for case in CASES}
    assert f"40 cases of seed {SEED}\n" in summary(outcomes, SEED)
    assert sum(int(line.split()[-2]) for line in summary(outcomes, SEED).splitlines()[1:]) == len(faults) > 0
