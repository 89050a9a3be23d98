"""``tune`` as a user calls it."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.errors import PlatformError
from star_export.evaluation.shapes import Shapes

from .conftest import Cli, refused

Bundles = Callable[..., Path]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of seven questions of the task shapes, with answers."""
    lines = []
    for index in range(7):
        example = Shapes().example("test", 0, index)
        example.image.save(tmp_path / f"{index}.png")
        pair = {"image": f"{index}.png", "question": example.question, "answer": example.answer}
        lines.append(json.dumps(pair) + "\n")
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(lines))
    return path


def test_tune_proposes_the_smallest_schedule_within_the_tolerance(
    bundle: Bundles, cli: Cli, pairs: Path
) -> None:
    plot, answers = pairs.with_name("plot.png"), pairs.with_name("answers.jsonl")
    request = ("tune", bundle("mini"), "--baseline", bundle("mini", prune=False), "--data", pairs,
               "--keep", "518,58", "--keep", "64,29", "--keep", "4,1", "--threads", 1,
               "-o", plot, "--answers", answers)  # fmt: skip
    found = cli(*request, "--tolerance", 0.3, "--json")
    assert found.code == 0, found.err
    result = json.loads(found.out)
    whole, *trials = result["trials"]
    assert [trial["schedule"] for trial in trials] == ["518@0,58@4", "64@0,29@4", "4@0,1@4"]
    assert (whole["schedule"], whole["agreement"], whole["tokens_per_layer"]) == (None, None, 576)
    kept = [trial["retention"]["value"] for trial in trials]
    assert kept[0] > 0.7 > kept[2]
    good = [trial for trial in trials if trial["retention"]["value"] >= 0.7]
    best = min(good, key=lambda trial: trial["flops"])
    assert result["proposal"] == best["name"]
    command = shlex.split(result["command"])
    assert command[:2] == ["star-export", "build"]
    assert command[command.index("--schedule") + 1] == best["schedule"]
    assert command[command.index("--stage1") + 1] == "received"
    assert plot.read_bytes().startswith(b"\x89PNG")
    # The answers are kept: with another tolerance nothing is asked again.
    marked = answers.read_text().replace('"text": "', '"text": "marked ')
    answers.write_text(marked)
    again = cli(*request, "--tolerance", 0, "--resume")
    assert again.code == 0, again.err
    assert answers.read_text() == marked
    assert "| schedule | scores |" in again.out
    assert "star-export build --model" in again.out


def test_without_answers_agreement_is_what_counts(bundle: Bundles, cli: Cli, pairs: Path) -> None:
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    for line in lines:
        del line["answer"]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = cli("tune", bundle("mini"), "--baseline", bundle("mini", prune=False), "--data", pairs,
                "--limit", 3, "--keep", "4,1", "--tolerance", 0, "--json", "-o", pairs.with_name("plot.png"),
                "--answers", pairs.with_name("answers.jsonl"))  # fmt: skip
    assert found.code == 0, found.err
    result = json.loads(found.out)
    (trial,) = result["trials"][1:]
    assert trial["accuracy"] is None
    assert trial["agreement"] == trial["retention"]
    rows = [json.loads(line) for line in pairs.with_name("answers.jsonl").read_text().splitlines()[1:]]
    same = [len({answer["text"] for answer in row["answers"].values()}) == 1 for row in rows]
    assert trial["agreement"]["value"] == sum(same) / 3
    assert result["proposal"] == (trial["name"] if all(same) else None)
    assert (result["command"] is None) == (result["proposal"] is None)


@pytest.mark.slow
def test_other_structures_are_built_and_removed(bundle: Bundles, cli: Cli, pairs: Path) -> None:
    before = {path.name for path in pairs.parent.iterdir()}
    found = cli("tune", bundle("mini"), "--data", pairs, "--layers", 0, "--layers", 4, "--stage1", "spread",
                "--json", "-o", pairs.with_name("plot.png"), "--answers", pairs.with_name("answers.jsonl"),
                "--limit", 2, "--threads", 1)  # fmt: skip
    assert found.code == 0, found.err
    result = json.loads(found.out)
    schedules = [trial["schedule"] for trial in result["trials"]]
    assert {"288@0", "18@0", "288@0,144@4", "18@0,4@4"} <= set(schedules)
    assert {trial["stage1"] for trial in result["trials"][1:]} == {"spread"}
    assert {path.name for path in pairs.parent.iterdir()} - before == {"plot.png", "answers.jsonl"}


def test_a_killed_search_goes_on(bundle: Bundles, cli: Cli, pairs: Path) -> None:
    answers = pairs.with_name("answers.jsonl")
    request = ("tune", bundle("mini"), "--baseline", bundle("mini", prune=False), "--data", pairs,
               "--keep", 29, "--json", "-o", pairs.with_name("plot.png"), "--answers", answers)  # fmt: skip
    first = cli(*request)
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join(lines[:3]) + lines[3][:30])
    again = cli(*request, "--resume")
    assert again.code == 0, again.err
    assert len(answers.read_text().splitlines()) == 8
    found = [json.loads(outcome.out)["trials"][1]["accuracy"] for outcome in (first, again)]
    assert found[0] == found[1]
    refused(cli(*request, "--keep", 28, "--resume"), "a run with another schedules")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --data with pictures and questions, or --task"),
        (("--task", "gqa"), "--task gqa is a benchmark, of which star-export compare asks; tune asks shapes"),
        (("--data", "PAIRS", "--task", "shapes"), "give --data with pictures and questions, or --task"),
        (("--data", "missing.jsonl"), "missing.jsonl cannot be read"),
        (("--data", "PAIRS", "--limit", 8), "--limit must be from 1 to the 7 questions"),
        (("--data", "PAIRS", "--tolerance", 1), "--tolerance must be from 0 to below 1, got 1"),
        (("--data", "PAIRS", "--keep", 600), "is not below the 518 tokens"),
        (("--data", "PAIRS", "--layers", 8), "is outside; this decoder's 8 layers"),
        (("--data", "PAIRS", "--layers", 4, "--keep", 64), "--keep 64 has 1 budgets; give 2"),
        (("--data", "PAIRS", "--stage1", "spred"), "did you mean spread?"),
        (
            ("--data", "PAIRS", "--stage2", "text", "--baseline", "X"),
            "--baseline has no meaning with --layers",
        ),
        (("--data", "PAIRS", "--output", "no/plot.png"), "--output no/plot.png cannot be written"),
        (("--data", "LOST"), "line 2: "),
        (("--data", "LONG"), "line 1: the prompt has"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_built(
    bundle: Bundles,
    cli: Cli,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    def build(*_arguments: object) -> None:
        raise PlatformError("a fake build that is not to be reached")

    monkeypatch.setattr("star_export.evaluation.parts.build", build)
    monkeypatch.setattr("star_export.baseline.build", build)
    lost, long = pairs.with_name("lost.jsonl"), pairs.with_name("long.jsonl")
    lines = pairs.read_text().splitlines(keepends=True)
    lost.write_text(lines[0] + lines[1].replace("1.png", "nowhere.png"))
    long.write_text(json.dumps({"image": "0.png", "question": "why " * 200}) + "\n")
    answers = pairs.with_name("answers.jsonl")
    answers.write_text("kept\n")
    places = {"PAIRS": pairs, "LOST": lost, "LONG": long}
    given = [places.get(str(argument), argument) for argument in arguments]
    output = () if "--output" in arguments else ("-o", pairs.with_name("plot.png"))
    refused(cli("tune", bundle("mini"), "--answers", answers, *output, *given), message)
    assert answers.read_text() == "kept\n"


def test_a_bundle_without_budgets_says_what_to_give(bundle: Bundles, cli: Cli, pairs: Path) -> None:
    refused(cli("tune", bundle("mini", prune=False), "--data", pairs, "--answers", pairs.with_name("a.jsonl"),
                "-o", pairs.with_name("plot.png")),
            "has no budgets to try; give --layers, --stage1 or --stage2")  # fmt: skip


def test_what_is_not_given_lies_beside_the_bundle(
    bundle: Bundles, cli: Cli, pairs: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle("mini"), tmp_path / "own"))
    request = ("--baseline", bundle("mini", prune=False), "--data", pairs, "--limit", 1, "--keep", 29)
    found = cli("tune", folder, *request)
    assert found.code == 0, found.err
    assert folder.with_name("own.tune.png").is_file()
    assert folder.with_name("own.tune.jsonl").is_file()
