"""``eval`` and ``compare`` on published benchmarks as a user calls it, on the mini model and tiny folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.build import BuildOptions
from star_export.errors import PlatformError
from tests.evaluation.benchmarks.folders import FOLDERS

from .conftest import Cli, refused

Bundles = Callable[..., Path]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with every benchmark."""
    for make in FOLDERS.values():
        make(tmp_path / "eval")
    return tmp_path / "eval"


def test_metrics_stand_in_the_table(bundle: Bundles, cli: Cli, data: Path, tmp_path: Path) -> None:
    request = ("--task", "pope", "--data", data, "--answers", tmp_path / "a.jsonl", "--threads", 1)
    found = cli("eval", bundle("mini"), "--baseline", bundle("mini", prune=False), *request)
    assert found.code == 0, found.err
    names = [line.split(" | ")[0].strip("| ") for line in found.out.splitlines()[2:]]
    measures = [
        f"**{m}, {c}**" for c in ("random", "popular", "adversarial") for m in ("F1", "accuracy", "yes")
    ]
    assert names == ["**all**", "**F1**", *measures, "random", "popular", "adversarial"]
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["expected"] for row in rows[1:5]] == ["yes", "yes", "no", "no"]


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "pope"])
def test_every_benchmark_runs(bundle: Bundles, cli: Cli, data: Path, tmp_path: Path, name: str) -> None:
    request = ("--task", name, "--data", data, "--limit", 1, "--no-baseline", "--threads", 1, "--json")
    found = cli("eval", bundle("mini"), *request, "--answers", tmp_path / "a.jsonl")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert report["questions"] == 1
    assert list(report["scores"] or report["submissions"]) == ["keep 64"]


def test_questions_without_a_picture_are_asked_too(
    bundle: Bundles, cli: Cli, data: Path, tmp_path: Path
) -> None:
    request = ("--task", "scienceqa", "--data", data, "--no-baseline", "--threads", 1)
    for more in ((), ("--batch", 2)):
        found = cli("eval", bundle("mini"), *request, "--answers", tmp_path / "a.jsonl", *more)
        assert found.code == 0, found.err
        names = [line.split(" | ")[0].strip("| ") for line in found.out.splitlines()[2:]]
        kinds = ["natural science", "language science, text only", "social science"]
        assert names == ["**all**", "**IMG-Accuracy**", *kinds]
        rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()[1:]]
        assert [row["expected"] for row in rows] == ["B", "A", "C"]


def test_answers_that_others_score_are_written(bundle: Bundles, cli: Cli, data: Path, tmp_path: Path) -> None:
    request = ("--task", "mmvet", "--data", data, "--no-baseline", "--keep", 64, "--keep", 29)
    found = cli("eval", bundle("mini"), *request, "--answers", tmp_path / "a.jsonl", "--threads", 1)
    assert found.code == 0, found.err
    files = [tmp_path / "a.keep-64.json", tmp_path / "a.keep-29.json"]
    assert found.out.splitlines() == [str(path) for path in files]
    assert "no score" in found.err
    assert "MM-Vet_Evaluator (GPT-4)" in found.err
    assert all(list(json.loads(path.read_text())) == ["v1_0"] for path in files)
    gate = cli("eval", bundle("mini"), *request, "--min-accuracy", 0.5)
    refused(gate, "--min-accuracy needs scores; those of test are made by https://")


def test_a_run_that_a_picture_stopped_goes_on(bundle: Bundles, cli: Cli, data: Path, tmp_path: Path) -> None:
    """Nothing that was answered is asked again; other question files are refused."""
    answers, picture = tmp_path / "a.jsonl", data / "vizwiz/val/b.jpg"
    request = ("--task", "vizwiz", "--data", data, "--no-baseline", "--threads", 1, "--answers", answers)
    moved = picture.rename(tmp_path / "b.jpg")
    refused(cli("eval", bundle("mini"), *request), f"question b.jpg: {picture} does not exist")
    first = answers.read_bytes()
    assert len(first.splitlines()) == 2
    assert list(json.loads(first.splitlines()[0])["data"]) == ["vizwiz/val.json"]
    moved.rename(picture)
    again = cli("eval", bundle("mini"), *request, "--resume")
    assert again.code == 0, again.err
    assert answers.read_bytes().startswith(first)
    assert len(answers.read_bytes().splitlines()) == 3
    (data / "vizwiz/val.json").write_text((data / "vizwiz/val.json").read_text() + " ")
    refused(cli("eval", bundle("mini"), *request, "--resume"), "a run with another data;")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "gqq", "--data", "DATA"), "did you mean gqa? tasks are shapes, numbers, vqav2, gqa,"),
        (("--task", "gqa"), "--data is not given; gqa is read from a folder"),
        (("--task", "shapes", "--data", "DATA"), "--data has no meaning for shapes"),
        (("--task", "gqa", "--data", "."), "llava_gqa_testdev_balanced.jsonl is missing; it is published at"),
        (("--task", "vqav2", "--data", "DATA", "--split", "test"), "--split must be one of test-dev, val"),
        (("--task", "pope", "--data", "DATA", "--limit", "9"), "from 1 to the 8 questions of test, got 9"),
    ],
)
def test_bad_requests(
    bundle: Bundles, cli: Cli, data: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [data if argument == "DATA" else argument for argument in arguments]
    refused(cli("eval", bundle("mini"), *given, "--answers", tmp_path / "a.jsonl"), message)
    assert not (tmp_path / "a.jsonl").exists()


def test_questions_in_batches_get_the_same_answers(bundle: Bundles, cli: Cli, tmp_path: Path) -> None:
    """Both bundles, two budgets, a last batch that is not full; and such a run goes on as others do."""
    common = ("eval", bundle("mini"), "--baseline", bundle("mini", prune=False), "--keep", 64, "--keep", 29)
    common += ("--limit", 14, "--threads", 1, "--json")
    single, batched = tmp_path / "single.jsonl", tmp_path / "batched.jsonl"
    first = cli(*common, "--answers", single)
    second = cli(*common, "--answers", batched, "--batch", 3)
    assert second.code == 0, second.err

    def texts(path: Path) -> list[dict[str, str]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        assert [row["index"] for row in rows] == list(range(14))
        return [{name: answer["text"] for name, answer in row["answers"].items()} for row in rows]

    assert texts(batched) == texts(single)
    accuracy = [json.loads(run.out)["scores"]["keep 29"]["accuracy"] for run in (first, second)]
    assert accuracy[0] == accuracy[1]
    lines = batched.read_text().splitlines(keepends=True)
    batched.write_text("".join(lines[:5]) + lines[5][:30])
    assert cli(*common, "--answers", batched, "--batch", 3, "--resume").code == 0
    assert texts(batched) == texts(single)
    assert batched.read_text().splitlines(keepends=True)[:5] == lines[:5]
    refused(cli(*common, "--answers", batched, "--resume"), "a run with another batch;")


@pytest.mark.slow
def test_methods_are_compared_on_a_benchmark(
    checkpoint: Callable[[str], Path], cli: Cli, data: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    request = ("--task", "pope", "--data", data, "--method", "spread", "--average", 32, "--threads", 1)
    found = cli("compare", "--model", checkpoint("mini"), *request, "-o", page, "--json")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert (report["task"], report["split"], report["questions"]) == ("pope", "test", 8)
    full, spread = report["methods"]
    assert (full["tokens_per_layer"], spread["tokens_per_layer"]) == (576, 32)
    assert list(full["score"]["metrics"])[:2] == ["F1", "F1, random"]
    assert "| **F1, popular** |" in page.read_text()


def test_a_comparison_on_a_benchmark_goes_on_with_the_same_questions_only(
    checkpoint: Callable[[str], Path], cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(options: BuildOptions) -> None:
        raise PlatformError(f"a fake build for {options.max_text_tokens} and {options.max_new_tokens} tokens")

    monkeypatch.setattr("star_export.evaluation.parts.build", build)
    questions = data / "pope/coco/coco_pope_random.json"
    request = ("compare", "--model", checkpoint("mini"), "--task", "pope", "--data", data)
    request += ("--method", "spread", "-o", tmp_path / "page.md")
    refused(cli(*request), "a fake build for 128 and 128 tokens")
    refused(cli(*request, "--resume"), "a fake build")
    before = questions.read_text()
    questions.write_text(before.replace("a dog", "a dog" + " or a cat" * 80, 1))
    refused(cli(*request, "--resume"), "a run with another data;")
    words = cli(*request)
    refused(words, "a fake build for ")
    assert 160 < int(words.err.split("a fake build for ")[1].split()[0]) < 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "gqa"), "--data is not given; gqa is read from a folder"),
        (("--task", "shapes", "--data", "DATA"), "--data has no meaning for shapes"),
        (("--task", "gqa", "--data", "."), "llava_gqa_testdev_balanced.jsonl is missing; it is published at"),
        (("--task", "vqav2", "--data", "DATA", "--split", "test"), "--split must be one of test-dev, val"),
        (("--task", "pope", "--data", "DATA", "--limit", "9"), "from 1 to the 8 questions of test, got 9"),
        (("--task", "mmvet", "--data", "DATA"), "--task mmvet: the scores of test are made by https://"),
        (("--task", "scienceqa", "--data", "DATA"), "no picture, so there is nothing to choose from; take"),
    ],
)
def test_bad_comparisons(
    checkpoint: Callable[[str], Path],
    cli: Cli,
    data: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    given = [data if argument == "DATA" else argument for argument in arguments]
    refused(cli("compare", "--model", checkpoint("mini"), *given, "-o", tmp_path / "page.md"), message)
    assert [path.name for path in tmp_path.iterdir()] == ["eval"]
