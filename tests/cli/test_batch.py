"""``batch`` as a user calls it, on the mini model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Cli, refused

SHAPES = Path(__file__).parents[2] / "docs/shapes.png"
Bundles = Callable[..., Path]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two rows, the second of which is bad, beside a picture."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(SHAPES, folder / "a.png")
    path = folder / "rows.jsonl"
    path.write_text('{"path": "a.png", "id": "x"}\n{"path": "b.png", "id": "y"}\n')
    return path


def test_bad_rows_have_an_exit_code_of_their_own(
    bundle: Bundles, cli: Cli, rows: Path, tmp_path: Path
) -> None:
    command = ("batch", bundle("mini"), "-i", rows, "-o", tmp_path / "out", "--column", "image=path")
    command += ("--prompt", "What number is written?", "--max-new-tokens", 4, "--threads", 1)
    first = cli(*command, "--json")
    assert first.code == 3
    found = json.loads(first.out)
    errors = tmp_path / "out/errors.jsonl"
    assert (found["rows"], found["answered"], found["bad"], found["errors"]) == (2, 1, 1, str(errors))
    assert "bad rows: 1, in" in first.err
    assert "b.png is no file" in errors.read_text()
    asked = ("--image", rows.parent / "a.png", "--prompt", "What number is written?", "--max-new-tokens", 4)
    alone = json.loads(cli("run", bundle("mini"), *asked, "--threads", 1, "--json").out)
    (line,) = (tmp_path / "out/part-00000.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == alone["text"]
    again = cli(*command)
    assert (again.code, again.out) == (3, "")
    assert "1 of 2 rows answered (2 before)" in again.err
    refused(cli(*command, "--keep", 29, "--seed", 1), "holds a job with another keep, seed; repeat that")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the input has no column image, there are path, id; say which it is: --column image=NAME"),
        (("--column", "image=path"), "no column prompt"),
        (("--column", "picture=path"), "--column knows no field picture"),
        (("--column", "image"), "'image' is no FIELD=NAME"),
        (("--input", "rows.csv"), "--input must end with .jsonl, .jsonl.gz or .parquet, got rows.csv"),
        (("--input", "gone.jsonl"), "gone.jsonl cannot be read: No such file"),
        (("--input", "EMPTY", "--prompt", "?", "--column", "image=path"), "no column path"),
        (("--keep", "600"), "is not below the 518 tokens"),
        (("--temperature", "-1"), "--temperature must be 0 (greedy) or"),
        (("--max-new-tokens", "1000"), "--max-new-tokens must be from 1 to"),
        (("--output", "DATA", "--column", "image=path", "--prompt", "?"), "choose another --output"),
    ],
)  # fmt: skip
def test_bad_requests(
    bundle: Bundles, cli: Cli, rows: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (rows.parent / "empty.jsonl").write_text("\n")
    places = {"EMPTY": rows.parent / "empty.jsonl", "DATA": rows.parent}
    given = [places.get(argument, argument) for argument in arguments]
    outcome = cli("batch", bundle("mini"), "-i", rows, "-o", tmp_path / "out", *given)
    if "FIELD=NAME" in message:  # Typer's own form
        assert (outcome.code, message in outcome.err) == (2, True)
    else:
        refused(outcome, message)
    assert not (tmp_path / "out").exists()
