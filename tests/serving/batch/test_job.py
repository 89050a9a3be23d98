"""A job's folder after a kill at every moment, and beside other jobs."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from star_export.errors import PlatformError, SettingsError
from star_export.serving.batch.job import ERRORS, JOB, JOURNAL, open_job
from star_export.serving.batch.options import Format
from star_export.serving.batch.outcome import Answered, Bad, Outcome
from star_export.serving.ticket import Usage

USAGE = Usage(
    prompt_tokens=9, patches=8, stage1_tokens=7, stage2_tokens=6, kv_bytes=5, kv_bytes_unpruned=1 << 40
)
SETTINGS = {"input": "abc", "keep": [128, 14], "seed": None}
TOTAL = 10


def outcome(row: int) -> Outcome:
    """Every third row is bad."""
    if row % 3 == 0:
        return Bad(row=row, id=f"r{row}", kind="invalid", error="the prompt is \u201cempty\u201d")
    return Answered(row=row, id=row, text="é\n", token_ids=(1, row), finish_reason="stop", usage=USAGE)


def job(folder: Path, settings: dict[str, Any] = SETTINGS, kind: Format = "jsonl") -> Any:
    return open_job(folder, settings, total=TOTAL, rows_per_part=4, kind=kind)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed job leaves."""
    with job(tmp_path / "whole") as held:
        for row in range(TOTAL):
            held.record(outcome(row))
    return content(tmp_path / "whole")


def test_parts_are_in_the_rows_order(whole: dict[str, bytes], tmp_path: Path) -> None:
    assert sorted(whole) == [ERRORS, JOB, "part-00000.jsonl", "part-00001.jsonl", "part-00002.jsonl"]
    rows = [[json.loads(line)["row"] for line in whole[name].splitlines()] for name in sorted(whole)[2:]]
    assert rows == [[1, 2], [4, 5, 7], [8]]
    assert [json.loads(line)["row"] for line in whole[ERRORS].splitlines()] == [0, 3, 6, 9]
    with job(tmp_path / "other") as held:
        for row in (9, 2, 8, 0, 3, 7, 6, 5, 4):
            held.record(outcome(row))
            assert not (tmp_path / "other/part-00000.jsonl").exists()
        held.record(outcome(1))
        assert (held.done, held.start, held.bad, held.parts) == (TOTAL, TOTAL, 4, 3)
    assert content(tmp_path / "other") == whole


@pytest.mark.parametrize("done", range(TOTAL))
def test_a_job_goes_on_where_it_was(whole: dict[str, bytes], tmp_path: Path, done: int) -> None:
    folder = tmp_path / "cut"
    with job(folder) as held:
        for row in range(done, -1, -1):
            held.record(outcome(row))
    with (folder / JOURNAL).open("ab") as file:
        file.write(b'{"row": 9, "id": nu')  # as a kill cuts it off
    with job(folder) as held:
        assert held.done == done + 1
        for row in set(range(TOTAL)) - set(range(done + 1)):
            assert row not in held
            held.record(outcome(row))
        assert all(row in held for row in range(TOTAL))
    assert content(folder) == whole


@pytest.mark.parametrize("moment", ["errors", "half an error", "part", "half a part", "half a journal"])
def test_a_kill_between_two_steps(whole: dict[str, bytes], tmp_path: Path, moment: str) -> None:
    """The journal still has the rows of the part that was being written."""
    folder = tmp_path / "cut"
    with job(folder) as held:
        for row in (0, 1, 2):
            held.record(outcome(row))
    before = (folder / JOURNAL).read_bytes()
    with job(folder) as held:
        held.record(outcome(3))
    last = json.dumps({"row": 3, "id": "r3", "kind": "invalid", "error": "again"}).encode() + b"\n"
    (folder / JOURNAL).write_bytes(before + last)
    part = folder / "part-00000.jsonl"
    errors = (folder / ERRORS).read_bytes()
    if moment != "part":
        part.unlink()
    if moment == "half an error":
        (folder / ERRORS).write_bytes(errors[:-5])
    if moment == "half a part":
        (folder / ".part-00000.jsonl.xyz").write_bytes(b'{"row"')
    if moment == "half a journal":
        (folder / f".{JOURNAL}.xyz").write_bytes(b'{"row"')
    with job(folder) as held:
        assert (held.start, held.done, held.bad) == (4, 4, 2)
        for row in range(4, TOTAL):
            held.record(outcome(row))
    again = content(folder)
    assert again.pop(ERRORS).count(b"\n") == 4
    assert again == {name: data for name, data in whole.items() if name != ERRORS}
    assert not list(folder.glob(".part*")) + list(folder.glob(f".{JOURNAL}*"))


def test_parquet_parts(tmp_path: Path) -> None:
    from pyarrow import parquet

    for name in ("a", "b"):
        with job(tmp_path / name, kind="parquet") as held:
            for row in range(TOTAL):
                held.record(outcome(row))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    found = parquet.read_table(tmp_path / "a/part-00000.parquet").to_pylist()
    assert [row["row"] for row in found] == [1, 2]
    assert found[0] == {
        "row": 1, "id": "1", "text": "é\n", "token_ids": [1, 1], "finish_reason": "stop",
        "usage": vars(USAGE),
    }  # fmt: skip


def test_a_job_without_bad_rows_has_no_file_of_them(tmp_path: Path) -> None:
    with job(tmp_path / "job") as held:
        for row in range(TOTAL):
            held.record(Answered(**{**vars(outcome(1)), "row": row}))
    assert ERRORS not in content(tmp_path / "job")


def test_another_job_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    with job(folder) as held:
        held.record(outcome(0))
        before = content(folder)
        with pytest.raises(SettingsError, match="another process is at the job"), job(folder):
            pass
    other = {**SETTINGS, "keep": 64, "seed": 1}
    with (
        pytest.raises(SettingsError, match="holds a job with another keep, seed; repeat"),
        job(folder, other),
    ):
        pass
    assert content(folder) == before
    (tmp_path / "file").write_text("")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(Exception, match=r"is not empty and holds no job|cannot be written"), job(taken):
            pass


@pytest.mark.parametrize("name", [JOB, JOURNAL, ERRORS])
def test_a_damaged_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "job"
    with job(folder) as held:
        held.record(outcome(0))
    (folder / name).write_text("[1]\n")
    before = content(folder)
    with pytest.raises(SettingsError, match=f"{name} is damaged"), job(folder):
        pass
    assert content(folder) == before


def test_a_full_disk_is_told_and_loses_nothing(whole: dict[str, bytes], tmp_path: Path) -> None:
    def go_on() -> int:
        with job(tmp_path / "full") as held:
            before: int = held.done
            for row in [row for row in range(TOTAL) if row not in held]:
                held.record(outcome(row))
        return before

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(PlatformError, match=r"^the job in .*full cannot be written: File too large"):
            go_on()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < go_on() < TOTAL
    assert content(tmp_path / "full") == whole
