"""Reports that commands leave in a bundle, and what ``inspect`` says of them afterwards."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_export.bundle import open_bundle, write_manifest

from .conftest import Cli

CHECK, EVAL = "check-onnxruntime.json", "eval-shapes-test-onnxruntime.json"


@pytest.fixture(scope="module")
def checked(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the trained model to be checked and scored."""
    folder = tmp_path_factory.mktemp("checked") / "bundle"
    source = bundle("mini", dtype="float16")
    return Path(shutil.copytree(source, folder, ignore=shutil.ignore_patterns("reports")))


def lines(cli: Cli, folder: Path) -> list[str]:
    """What ``inspect`` prints below its last table."""
    outcome = cli("inspect", folder)
    assert outcome.code == 0, outcome.err
    return [
        str(line)
        for line in outcome.out.partition("every file matches its hash")[2].split("\n")
        if line.strip()
    ]


def report(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / "reports" / name).read_text()))


def test_check_and_eval_then_engines(cli: Cli, checked: Path, tmp_path: Path) -> None:
    assert lines(cli, checked) == []
    answers = tmp_path / "answers.jsonl"
    request = ("eval", checked, "--no-baseline", "--limit", 8, "--keep", 64, "--keep", 29, "--threads", 1)
    assert cli("check", checked, "--probes", 1, "--max-new-tokens", 2).code == 0
    outcome = cli(*request, "--answers", answers, "--json")
    assert outcome.code == 0, outcome.err
    proven = lines(cli, checked)
    when = r"on onnxruntime, \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(rf"check {when}: passed, 1 case; current", proven[0])
    shares = r"keep 64 [\d.]+ %, keep 29 [\d.]+ % of 8 questions"
    assert re.fullmatch(rf"eval shapes test {when}: {shares}; current", proven[1])

    added = cli("build", "--from-bundle", checked, "--backend", "tensorrt-rtx", "--target", "sm89")
    assert added.code == 0, added.err
    assert lines(cli, checked) == proven

    stored, told = report(checked, EVAL), json.loads(outcome.out)
    assert stored["settings"].items() >= {"task": "shapes", "split": "test", "seed": 0, "limit": 8}.items()
    assert stored["settings"]["variants"] == ["keep 64", "keep 29"]
    assert stored["result"]["questions"] == 8
    assert stored["result"]["answers"] == {
        "name": "answers.jsonl", "sha256": hashlib.sha256(answers.read_bytes()).hexdigest()
    }  # fmt: skip
    for name, score in told["scores"].items():
        kept = stored["result"]["scores"][name]
        assert kept["accuracy"] == score["accuracy"]
        assert {kind: found["value"] for kind, found in kept["kinds"].items()} == score["kinds"]
        assert all(0 <= k["low"] <= k["value"] <= k["high"] <= 1 for k in kept["kinds"].values())


def test_reports_of_other_weights(
    cli: Cli, bundle: Callable[..., Path], checked: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checked, tmp_path / "bundle"))
    ask = ("eval", folder, "--limit", 3, "--answers", tmp_path / "a.jsonl")
    whole = bundle("mini", prune=False)
    assert cli("check", folder, "--probes", 1, "--max-new-tokens", 1).code == 0
    assert cli(*ask, "--baseline", whole, "--min-retention", 1.5).code == 1
    assert re.search(
        r": unpruned [\d.]+ %, keep 64 [\d.]+ % of 3 questions; too low; current$", lines(cli, folder)[1]
    )
    opened = open_bundle(folder)
    weights = folder / "graphs/decoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    write_manifest(
        folder, opened.spec, source=opened.manifest["source"], versions=opened.manifest["versions"]
    )
    for line in lines(cli, folder):
        assert line.endswith("; out of date: decoder.safetensors differs")
    reports = json.loads(cli("inspect", folder, "--json").out)["reports"]
    assert [(r["file"], r["differ"]) for r in reports] == [
        (f"reports/{name}", ["graphs/decoder.safetensors"]) for name in (CHECK, EVAL)
    ]
    assert reports[0]["report"] == report(folder, CHECK)
    assert cli(*ask, "--no-baseline").code == 0
    assert [line.partition("; ")[2] for line in lines(cli, folder)] == [
        "out of date: decoder.safetensors differs", "current"
    ]  # fmt: skip


def test_weights_that_changed_unseen_are_not_scored(
    cli: Cli, checked: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Files too large to be hashed at every load are hashed before a report is made about them."""
    monkeypatch.setattr("star_export.bundle.HASH_AT_LOAD_BYTES", 1)
    folder = Path(shutil.copytree(checked, tmp_path / "bundle"))
    weights = folder / "graphs/decoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    outcome = cli("eval", folder, "--no-baseline", "--limit", 1, "--answers", tmp_path / "a.jsonl")
    assert outcome.code == 2
    assert "decoder.safetensors differs from the SHA-256" in outcome.err


def test_inspect_goes_on_beside_damaged_reports(cli: Cli, checked: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checked, tmp_path / "bundle"))
    (folder / "reports").mkdir(exist_ok=True)
    for path in (folder / "reports").iterdir():
        path.unlink()
    (folder / "reports" / CHECK).write_text("{")
    (folder / "reports/[bold]mine.json").write_text("[]")
    (folder / "parity.json").write_text('{"passed": false, "backend": "onnxruntime", "cases": []}')
    first, second, third = lines(cli, folder)
    assert first == "check on onnxruntime: FAILED, 0 cases; says nothing of what it was about"
    assert second == "reports/[bold]mine.json: no report: expected object, got array, found []"
    assert third.startswith(f"reports/{CHECK}: no report: it is not JSON")


def test_a_bundle_that_takes_no_report(cli: Cli, checked: Path, tmp_path: Path) -> None:
    """A file in the place of the folder of reports: it cannot be made, as where nothing can be written."""
    folder = tmp_path / "bundle"
    shutil.copytree(checked, folder, ignore=shutil.ignore_patterns("reports"))
    (folder / "reports").write_text("")
    asked = ("eval", folder, "--no-baseline", "--limit", 1, "--answers", tmp_path / "a.jsonl")
    for request in (("check", folder, "--probes", 1, "--max-new-tokens", 1), asked):
        outcome = cli(*request, "--json")
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["passed"]
        [line] = [line for line in outcome.err.splitlines() if "WARNING" in line]
        assert "so this report is not stored" in line
