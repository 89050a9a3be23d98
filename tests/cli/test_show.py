"""``star-export show``: one file, whole, and what it shows as JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import refused

BundleOf = Callable[..., Path]


def request(folder: Path, picture: Path, *options: object, prompt: str = "Where?") -> tuple[object, ...]:
    return ("show", folder, "-i", picture, "-p", prompt, "--max-new-tokens", 2, *options)


def test_a_picture(cli: Any, bundle: BundleOf, picture: Path, tmp_path: Path) -> None:
    outcome = cli(*request(bundle("mha"), picture, "-o", tmp_path / "out.PNG"))
    assert outcome.code == 0, outcome.err
    answer, place = outcome.out.splitlines()[0], outcome.out.splitlines()[-1]
    assert answer.startswith("64 visual tokens: ")
    assert place == f"drawn in {tmp_path / 'out.PNG'}"
    with Image.open(tmp_path / "out.PNG") as image:
        image.load()
        assert image.width > 5 * 300
    assert [path.name for path in tmp_path.iterdir()] == ["out.PNG"]


def test_json_is_the_answer_of_run_and_why(cli: Any, bundle: BundleOf, picture: Path, tmp_path: Path) -> None:
    budgets, output = ("--keep", 288, "--keep", 29), tmp_path / "out.html"
    outcome = cli(*request(bundle("mha"), picture, *budgets, "-o", output, "--json"))
    assert outcome.code == 0, outcome.err
    assert output.read_text().count("</figure>") == 4 + 2
    answers = json.loads(outcome.out)["answers"]
    assert [len(answer["stage2_indices"]) for answer in answers] == [288, 29]
    assert answers[0]["stages"][1]["scores"] == answers[1]["stages"][1]["scores"]
    for answer in answers:
        for number, stage in enumerate(answer["stages"], 1):
            scores, kept = np.array(stage["scores"]), stage["kept"]
            assert kept == answer[f"stage{number}_indices"]
            assert scores[kept].min() >= np.delete(scores, kept).max()
    run = ("run", bundle("mha"), "-i", picture, "-p", "Where?", "--max-new-tokens", 2, "--keep", 29, "--json")
    plain = json.loads(cli(*run).out)
    del plain["timings_ms"], answers[1]["timings_ms"]
    assert answers[1].items() >= plain.items()


def test_several_pictures(cli: Any, bundle: BundleOf, picture: Path, tmp_path: Path) -> None:
    folder, output = bundle("next", max_images=2), tmp_path / "out.png"
    outcome = cli(*request(folder, picture, "-i", picture, "--keep", 20, "-o", output, "--json"))
    assert outcome.code == 0, outcome.err
    [answer] = json.loads(outcome.out)["answers"]
    scores, kept = answer["stages"][0]["scores"], answer["stage1_indices"]
    assert scores[: len(scores) // 2] == scores[len(scores) // 2 :]
    assert {place for place, score in enumerate(scores) if score is None} <= set(kept)
    assert len(answer["stages"][1]["scores"]) == len(kept)
    assert len(answer["stage2_indices"]) == 20
    with Image.open(output) as image:
        assert image.height > 2 * 384
    output.unlink()
    too_many = request(folder, picture, "-i", picture, "-i", picture, "-o", output)
    refused(cli(*too_many), "--max-images 3")
    assert list(tmp_path.iterdir()) == []


def test_the_prompt_is_text_on_a_page(cli: Any, bundle: BundleOf, picture: Path, tmp_path: Path) -> None:
    prompt = "<script>alert(1)</script>"
    outcome = cli(*request(bundle("mha"), picture, "-o", tmp_path / "out.html", prompt=prompt))
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "out.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "out.jpg"), "--output must end in .png or .html, got out.jpg"),
        (("-o", "nowhere/out.png"), "--output nowhere/out.png cannot be written: give a file in a folder"),
        (("-o", "folder.png"), "--output folder.png cannot be written"),
        (("--keep", 64, "--keep", 999), "--keep 999 is not below the 518 tokens"),
        (("--max-new-tokens", 0), "--max-new-tokens must be from 1 to 32, got 0"),
    ],
)
def test_bad_options(
    cli: Any,
    bundle: BundleOf,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    refused(cli(*request(bundle("mha"), picture, *options)), message)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_what_cannot_be_shown(
    cli: Any, bundle: BundleOf, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(cli(*request(bundle("mha", prune=False), picture)), "built with --no-prune: it ranks no tokens")
    refused(cli(*request(bundle("mha", dtype="bfloat16"), picture)), "is bfloat16, which ONNX Runtime cannot")
    refused(cli(*request(bundle("mha"), tmp_path / "none.png")), "none.png does not exist")
    refused(cli(*request(tmp_path, picture)), "is not a bundle: it has no manifest.json")
    assert list(tmp_path.iterdir()) == []
