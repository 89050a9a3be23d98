"""``eval`` and ``compare`` as a user calls them, on the mini model."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.answer.pipeline import load
from star_export.errors import PlatformError
from star_export.evaluation.shapes import Shapes

from .conftest import Cli, refused

Bundles = Callable[..., Path]


def test_eval_prints_a_markdown_table_with_retention(bundle: Bundles, cli: Cli, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    arguments = ("--limit", 14, "--keep", 288, "--keep", 29, "--answers", answers, "--threads", 1)
    found = cli("eval", bundle("mini"), "--baseline", bundle("mini", prune=False), *arguments)
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0] == "|  | unpruned | keep 288 | keep 29 |"
    assert re.fullmatch(r"\| \*\*all\*\* \| \*\*[\d.]+\*\*( \| \*\*[\d.]+\*\* \([\d.]+ %\)){2} \|", lines[2])
    assert len(lines) == 3 + 7
    rows = [json.loads(line) for line in answers.read_text().splitlines()[1:]]
    assert [row["index"] for row in rows] == list(range(14))
    assert all(set(row["answers"]) == {"unpruned", "keep 288", "keep 29"} for row in rows)


def test_a_killed_run_goes_on(bundle: Bundles, cli: Cli, tmp_path: Path) -> None:
    arguments = ("--no-baseline", "--limit", 9, "--threads", 1, "--json", "--answers")
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    first = cli("eval", bundle("mini"), *arguments, whole)
    lines = whole.read_text().splitlines(keepends=True)
    # A row that only a resumed run can have: it was never asked again.
    marked = lines[1].replace('"text": "', '"text": "marked ', 1)
    cut.write_text(lines[0] + marked + "".join(lines[2:4]) + lines[4][:20])
    again = cli("eval", bundle("mini"), *arguments, cut, "--resume")
    assert again.code == 0, again.err
    kept = cut.read_text().splitlines(keepends=True)
    assert kept[1] == marked
    assert len(kept) == 10
    scores = [json.loads(outcome.out)["scores"]["keep 64"]["accuracy"]["value"] for outcome in (first, again)]
    assert scores[0] == scores[1]


def test_the_gate_options_set_the_exit_code(bundle: Bundles, cli: Cli, tmp_path: Path) -> None:
    common = ("eval", bundle("mini"), "--no-baseline", "--limit", 2, "--answers", tmp_path / "a.jsonl")
    assert cli(*common, "--min-accuracy", 0.0).code == 0
    whole, pruned = bundle("mini", prune=False), bundle("mini")
    failed = cli("eval", pruned, "--baseline", whole, "--limit", 14, "--answers", tmp_path / "b.jsonl",
                 "--min-retention", 1.5, "--json")  # fmt: skip
    assert failed.code == 1
    assert json.loads(failed.out)["passed"] is False
    assert "keep 64 keeps" in failed.err
    refused(cli(*common, "--min-retention", 0.9), "--min-retention compares a pruned bundle")


def test_an_unpruned_bundle_is_scored_alone(bundle: Bundles, cli: Cli, tmp_path: Path) -> None:
    found = cli(
        "eval", bundle("mini", prune=False), "--limit", 3, "--json", "--answers", tmp_path / "a.jsonl"
    )
    assert list(json.loads(found.out)["scores"]) == ["unpruned"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "shape"), "did you mean shapes? tasks are shapes, numbers"),
        (("--split", "dev"), "--split must be one of train, validation, test for shapes, got dev"),
        (("--limit", "0"), "--limit must be from 1 to the 1400 questions of test, got 0"),
        (("--limit", "1401"), "got 1401"),
        (("--keep", "600"), "is not below the 518 tokens"),
        (("--backend", "tensorrt-rtx"), "no tensorrt-rtx engines"),
        (("--baseline", "BUNDLE"), "--baseline takes a bundle built with --no-prune"),
        (("--baseline", "OTHER"), "holds another model"),
        (("--resume", "--answers", "DAMAGED"), "holds no answers"),
        (("--answers", "missing/answers.jsonl"), "missing"),
    ],
)
def test_bad_requests(
    bundle: Bundles, cli: Cli, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("no json\n")
    places = {"BUNDLE": bundle("mini"), "OTHER": bundle("mha", prune=False), "DAMAGED": damaged}
    given = [places.get(argument, argument) for argument in arguments]
    if "--baseline" not in arguments:
        given.append("--no-baseline")
    if "--answers" not in arguments:
        given += ["--answers", tmp_path / "a.jsonl"]
    refused(cli("eval", bundle("mini"), *given), message)
    assert damaged.read_text() == "no json\n"


@pytest.mark.slow
def test_compare_writes_a_page_and_a_plot(
    cli: Cli, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    methods = [word for name in ("star", "spread", "divprune", "random") for word in ("--method", name)]
    request = ("--limit", 7, "--keep", 29, "--average", 32, "--threads", 1, "-o", page, "--json")
    found = cli("compare", "--model", checkpoint("mini"), *methods, *request, "--quantize", "int4")
    assert found.code == 0, found.err
    text = page.read_text()
    assert "](page.png)" in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    reports = {f"{m['method']['rule']} {m['method']['level']}": m for m in json.loads(found.out)["methods"]}
    keep, average = {"average": None, "keep": 29}, {"average": 32, "keep": None}
    assert [name for name, report in reports.items() if report["lead"] is None] == [
        "unpruned None", f"star {keep}", f"spread {average}",
    ]  # fmt: skip
    assert set(reports) - {f"star {keep}", "unpruned None"} == {
        f"{rule} {level}" for rule in ("spread", "divprune", "random") for level in (keep, average)
    }
    assert reports[f"star {keep}"]["tokens_per_layer"] == (518 + 29) / 2
    assert reports[f"random {keep}"]["tokens_per_layer"] == 274
    assert reports[f"divprune {average}"]["entering"] == 32
    for level, reference in (("Keep 29", "star"), ("Average 32", "spread")):
        table = text.split(f"## {level}\n")[1].split("\n## ")[0]
        assert f"ahead of {reference} by" in table
        assert f"| **{reference}** |" in table
        assert table.count("\n| ") == 2 + (4 if reference == "star" else 3)
        assert "random" in table.split("- ", 1)[1]  # some verdict
    table = [line for line in text.split("## Few bits\n")[1].splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[:2] for row in table[2:]] == [
        ["| float32", "all"], ["| int4", "all"], ["| float32", "64"], ["| int4", "64"],
    ]  # fmt: skip
    sizes = [report["bytes"] for report in json.loads(found.out)["weights"]]
    assert sizes[0] > 3 * sizes[1] > 0
    front = text.split("## The Pareto front\n")[1].split("\n## ")[0]
    assert "average 32 |" in front
    rows = [json.loads(line) for line in page.with_suffix(".jsonl").read_text().splitlines()[1:]]
    assert [row["index"] for row in rows] == list(range(7))
    assert all(len(row["answers"]) == len(reports) + len(sizes) for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"page.md", "page.png", "page.jsonl"}


def test_eval_of_a_share_of_each_pictures_tokens(
    cli: Cli, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, request = tmp_path / "bundle", ("--no-baseline", "--limit", 2, "--threads", 1, "--json")
    built = cli("build", "--model", checkpoint("onevision"), "--keep-ratio", 0.25, "-o", folder)
    assert built.code == 0, built.err
    own, given = (cli("eval", folder, *request, *more) for more in ((), ("--keep", 20)))
    assert list(json.loads(own.out)["scores"]) == ["keep 25 %"]
    assert list(json.loads(given.out)["scores"]) == ["keep 20"]
    with load(folder) as pipeline:
        (image,) = pipeline.prepare(Shapes().example("test", 0, 0).image)
        assert pipeline.budget(None, [image]) == 24


@pytest.mark.slow
def test_compare_of_pictures_that_are_cut(
    cli: Cli, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Pictures of 96x96 pixels: 3x3 tiles of 36 behind the first, scaled down to 8x8 patches."""
    page = tmp_path / "page.md"
    methods = ("--method", "star", "--method", "fastv", "--method", "spread")
    request = ("--limit", 2, "--keep", 20, "--threads", 1, "-o", page, "--json")
    found = cli("compare", "--model", checkpoint("onevision"), *methods, *request)
    assert found.code == 0, found.err
    full, star, *others = json.loads(found.out)["methods"]
    assert (full["entering"], full["keep"]) == (97, 97)  # 25, and 8 rows of 8 and a newline
    assert (star["entering"], star["keep"], star["layer"]) == (80 + 8, 20, 1)
    for other in others:
        assert other["tokens_per_layer"] == pytest.approx(star["tokens_per_layer"], abs=0.5)
    assert star["flops"] < full["flops"]
    assert "| **star** | 88 → 20 |" in page.read_text()


def test_compare_resumes_the_same_model_only(
    cli: Cli, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By content: another model at the same path is refused, the same one elsewhere goes on."""

    def build(_options: object) -> None:
        raise PlatformError("a fake build that comes after the answers were looked at")

    monkeypatch.setattr("star_export.evaluation.parts.build", build)
    model = Path(shutil.copytree(checkpoint("mini"), tmp_path / "model"))
    request = ("--limit", 7, "--keep", 29, "-o", tmp_path / "page.md")
    begun = "a fake build that comes after"
    refused(cli("compare", "--model", model, *request), begun)
    refused(cli("compare", "--model", model, *request, "--resume"), begun)
    moved = model.rename(tmp_path / "moved")
    refused(cli("compare", "--model", moved, *request, "--resume"), begun)
    before = (tmp_path / "page.jsonl").read_bytes()
    for name in ("tokenizer.json", next(moved.glob("*.safetensors")).name):
        content = (moved / name).read_bytes()
        (moved / name).write_bytes(content[:-1] + (b"\0" if name.endswith("safetensors") else b" }"))
        refused(cli("compare", "--model", moved, *request, "--resume"), "a run with another model;")
        (moved / name).write_bytes(content)
    assert (tmp_path / "page.jsonl").read_bytes() == before


def test_compare_refuses_before_it_builds(
    cli: Cli, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    common = ("compare", "--model", checkpoint("mini"), "-o", tmp_path / "page.md")
    refused(cli(*common, "--keep", 518), "is not below the 518 tokens")
    refused(cli(*common, "--limit", 0), "--limit must be")
    refused(cli(*common, "--average", 576), "--average must be from 1 to below the 576 visual tokens")
    refused(cli(*common, "--method", "spred"), "did you mean spread? methods are star, stage-2, fastv")
    refused(cli(*common, "--quantize", "int5"), "--quantize must be int4, uint4, int8, uint8, got int5")
    nowhere = tmp_path / "no" / "file"
    refused(cli("compare", "--model", checkpoint("mini"), "-o", nowhere), f"--output {nowhere} cannot")
    refused(cli(*common, "--answers", nowhere), f"--answers {nowhere} cannot be written")
    assert list(tmp_path.iterdir()) == []
