"""Files of rows: read as a stream, from any row on, whatever lies in them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from star_export.errors import InputError, SettingsError
from star_export.serving.batch import table as module
from star_export.serving.batch.table import open_table

ROWS = [{"id": index, "prompt": "?" * index} for index in range(50)]


def write(path: Path) -> Path:
    """The rows in a file of any kind."""
    lines = "\n \n".join(map(json.dumps, ROWS)).encode()
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=20)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_rows_from_any_one_on(tmp_path: Path, name: str) -> None:
    table = open_table(write(tmp_path / name))
    assert table.columns() == ["id", "prompt"]
    assert table.count() == 50
    for start in (0, 1, 16, 20, 37, 49, 50):
        assert list(table.rows(start)) == ROWS[start:]


def test_a_table_has_nulls_for_what_is_not_there(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    rows = [{"messages": messages, "keep": [128, 14]}, {"image": {"bytes": b"\x89", "path": None}}]
    path = tmp_path / "rows.parquet"
    schema = pa.Table.from_pylist(rows[:1]).schema.append(
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    )
    parquet.write_table(pa.Table.from_pylist(rows, schema), path)
    found = list(open_table(path).rows(0))
    assert found == [rows[0], {"image": {"bytes": b"\x89"}}]


def test_a_bad_line_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LINE", 40)
    path = tmp_path / "rows.jsonl"
    bad = [b"no json", b"[1]", b"{" * 30, b'{"a": NaN}', b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"x" * 100]
    path.write_bytes(b"\n".join([*bad, b'{"id": 7}', b'{"id": ' + b" " * 90 + b"8}"]))
    *found, last, cut = open_table(path).rows(0)
    assert len(found) == len(bad)
    assert all(isinstance(error, InputError) for error in (*found, cut))
    assert "must be a JSON object, got list" in str(found[1])
    assert "longer than" in str(found[-1])
    assert last == {"id": 7}


def test_a_file_of_which_no_row_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png",\n[1]\n')
    with pytest.raises(InputError, match="holds no rows that can be read; the first: it is not JSON"):
        open_table(tmp_path / "rows.jsonl").columns()


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet"])
def test_a_file_that_was_cut_off(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        list(open_table(path).rows(0))


def test_a_parquet_file_whose_pages_are_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet")
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"rows.parquet cannot be read"):
        list(open_table(path).rows(0))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="No such file"):
        open_table(tmp_path / name)


def test_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"must end with .jsonl, .jsonl.gz or .parquet, got rows.csv"):
        open_table(Path("rows.csv"))
