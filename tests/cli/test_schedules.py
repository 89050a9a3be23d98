"""Schedules on the command line: any number of stages, other scores, and budgets for every stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import refused

BundleOf = Callable[..., Path]

#: Of 64 visual tokens and 3 layers.
THREE = {"schedule": "30@0,20@1,10@2", "stage1": "peaks", "stage2": "last"}
FAST = {"schedule": "fast-16"}
INSIDE = {"schedule": "20@1,10@2"}
ATTENTION = {"schedule": "30@0,20@1,10@2", "stage1": "received", "stage2": "text"}
TWO = {"schedule": "30@0,10@1", "stage2": "key-norm"}


@pytest.fixture
def ask(cli: Any, bundle: BundleOf, picture: Path) -> Callable[..., Any]:
    def call(kind: dict[str, str], *options: object) -> Any:
        folder = bundle("vicuna", **kind)
        return cli("run", folder, "-i", picture, "-p", "Where?", "--max-new-tokens", 3, *options)

    return call


def kept(outcome: Any) -> tuple[int, int]:
    """Visual tokens behind the first stage and behind the last."""
    assert outcome.code == 0, outcome.err
    answer = json.loads(outcome.out)
    return len(answer["stage1_indices"]), len(answer["stage2_indices"])


def test_a_request_gives_budgets(ask: Callable[..., Any]) -> None:
    assert kept(ask(THREE, "--json")) == (30, 10)
    assert kept(ask(THREE, "--json", "--keep", 5)) == (30, 5)
    assert kept(ask(THREE, "--json", "--keep", "25,15,7")) == (25, 7)


@pytest.mark.slow
def test_a_request_gives_the_budget_of_a_stage_before_the_decoder(ask: Callable[..., Any]) -> None:
    for options, count in (((), 16), (("--keep", 5), 5)):
        outcome = ask(FAST, "--json", *options)
        assert len(json.loads(outcome.out)["stage1_indices"]) == count


@pytest.mark.parametrize(
    ("kind", "keep", "message"),
    [
        (THREE, "9,5", "--keep 9,5 has 2 budgets; give one number for the last stage, or 3, one for each"),
        (
            THREE,
            "31,20,10",
            "--keep 31 is over this bundle's maximum of 30; build it again with --schedule 31@0",
        ),
        (THREE, "30,21,10", "--keep 21 is over this bundle's maximum of 20"),
        (
            THREE,
            "30,20,11",
            "--keep 11 is over this bundle's maximum of 10; build it again with --max-keep 11",
        ),
        (THREE, "15,15,5", "--keep 15 is not below the 15 tokens that stage 1 keeps; choose at most 14"),
        (THREE, "30,0,5", "--keep must be at least 1 visual token, got 0"),
        (FAST, "17", "--keep 17 is over this bundle's maximum of 16; build it again with --schedule 17@0"),
    ],
)
def test_budgets_that_cannot_be(
    ask: Callable[..., Any], kind: dict[str, str], keep: str, message: str
) -> None:
    refused(ask(kind, "--keep", keep), message)


@pytest.mark.parametrize("keep", ["many", "30,", "30;20", "1.5"])
def test_what_is_no_budget(ask: Callable[..., Any], keep: str) -> None:
    outcome = ask(THREE, "--keep", keep)
    assert outcome.code == 2
    said = " ".join(outcome.err.replace("│", "").split())
    assert f"'{keep}' is no number of visual tokens, nor a list such as 128,14 of one for each stage" in said


def test_inspect_says_the_schedule(cli: Any, bundle: BundleOf) -> None:
    outcome = cli("inspect", bundle("vicuna", **THREE))
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    assert "-> 30 of each picture before the decoder by peaks, -> 20 after layer 1 by last" in text


@pytest.mark.parametrize(
    ("kind", "titles"),
    [
        (THREE, ["stage 1: 30 of 64", "stage 2: 20 of 30", "stage 3: 10 of 20"]),
        (FAST, ["stage 1: 16 of 64"]),
        (INSIDE, ["stage 2: 20 of 64", "stage 3: 10 of 20"]),
    ],
    ids=["three", "before", "inside"],
)
def test_show_draws_every_stage(
    cli: Any, bundle: BundleOf, picture: Path, tmp_path: Path, kind: dict[str, str], titles: list[str]
) -> None:
    """Each keeps the tokens with the highest scores, of those that came to it."""
    request = (bundle("vicuna", **kind), "-i", picture, "-p", "Where?", "--max-new-tokens", 2, "--json")
    outcome = cli("show", *request, "-o", tmp_path / "out.html")
    assert outcome.code == 0, outcome.err
    [answer] = json.loads(outcome.out)["answers"]
    left = list(range(64))
    for stage, title in zip(answer["stages"], titles, strict=True):
        assert title == f"stage {stage['stage']}: {len(stage['kept'])} of {len(left)}"
        assert len(stage["scores"]) == len(left)
        best = sorted(range(len(left)), key=lambda place: (-stage["scores"][place], place))
        assert stage["kept"] == sorted(best[: len(stage["kept"])])
        left = [left[place] for place in stage["kept"]]
    assert left == [answer["stage1_indices"][place] for place in answer["stage2_indices"]]
    page = (tmp_path / "out.html").read_text()
    assert page.count("</figure>") == 1 + 2 * len(titles)
    assert all(title in page for title in titles)


def test_statistics_of_every_stage(cli: Any, bundle: BundleOf) -> None:
    outcome = cli("check", bundle("vicuna", **ATTENTION), "--scores", "--probes", 1, "--keep", 9, "--keep", 5)
    assert outcome.code in (0, 1), outcome.err
    rows = [line.split()[2:4] for line in outcome.out.splitlines() if line.startswith("probe 0")]
    assert rows == [["1", "30/64"], ["2", "20/30"], ["3", "9/20"], ["3", "5/20"]]


def test_statistics_are_of_attention(cli: Any, bundle: BundleOf) -> None:
    refused(
        cli("check", bundle("vicuna", **TWO), "--scores"),
        "statistics are of attention (received, cls, text, last, raters, visual-heads), and a stage of this "
        "bundle ranks by spread; `star-export check` without --scores",
    )


def test_show_draws_any_score_at_budgets_of_both_stages(
    cli: Any, bundle: BundleOf, picture: Path, tmp_path: Path
) -> None:
    output, keeps = tmp_path / "out.html", ("--keep", "30,10", "--keep", "20,5")
    outcome = cli(
        *("show", bundle("vicuna", **TWO), "-i", picture, "-p", "Where?", *keeps, "-o", output),
        *("--max-new-tokens", 2, "--json"),
    )
    assert outcome.code == 0, outcome.err
    answers = json.loads(outcome.out)["answers"]
    assert [len(answer["stage1_indices"]) for answer in answers] == [30, 20]
    for answer in answers:
        for stage in answer["stages"]:
            scores, stays = stage["scores"], stage["kept"]
            best = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
            assert sorted(best[: len(stays)]) == stays
    page = output.read_text()
    assert page.count("</figure>") == 2 + 2 * 3  # stage 1 keeps other tokens: only its scores are shared
    assert "stage 1: 20 of 64" in page
