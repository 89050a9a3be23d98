"""Answers on disk: killed, resumed, damaged."""

from pathlib import Path

import pytest

from star_export.errors import SettingsError
from star_export.evaluation.record import Record, Row, ScoredAnswer

SETTINGS = {"task": "shapes", "keep": (64, 29)}


def row(index: int) -> Row:
    return Row(index, "color", "What color is the ring?", "rød", {"keep 64": ScoredAnswer("rød", 1.0, 2.5)})


def test_a_run_cut_off_within_a_line_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    record = Record(path, SETTINGS, resume=False)
    record.add(row(0))
    record.add(row(1))
    path.write_bytes(path.read_bytes()[:-7])  # killed while it wrote
    again = Record(path, SETTINGS, resume=True)
    assert again.rows == {0: row(0)}
    again.add(row(1))
    assert Record(path, SETTINGS, resume=True).rows == {0: row(0), 1: row(1)}


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Record(path, SETTINGS, resume=False).add(row(0))
    assert Record(path, SETTINGS, resume=False).rows == {}


def test_resume_without_a_file_begins(tmp_path: Path) -> None:
    assert Record(tmp_path / "answers.jsonl", SETTINGS, resume=True).rows == {}


def test_a_run_cut_off_within_its_first_line_begins(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"task": "sha')
    assert Record(path, SETTINGS, resume=True).rows == {}


def test_a_value_of_another_type_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Record(path, SETTINGS, resume=False).add(row(0))
    path.write_bytes(path.read_bytes().replace(b'"score": 1.0', b'"score": "1"'))
    with pytest.raises(SettingsError, match=r"answers\[...\].score: expected float \| null, got str"):
        Record(path, SETTINGS, resume=True)


def test_another_runs_answers_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Record(path, SETTINGS, resume=False).add(row(0))
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="a run with another keep; repeat that run's options"):
        Record(path, SETTINGS | {"keep": (58,)}, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not json\n", b"{}\n{}\n", b"[1]\n", b"\xff\xfe\n", b'{"a": 1}\n"x"\n'])
def test_a_file_that_holds_no_answers_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="answers"):
        Record(path, SETTINGS, resume=True)
    assert path.read_bytes() == content
