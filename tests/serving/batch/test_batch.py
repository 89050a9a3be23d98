"""A batch job on a real bundle: the answers of single runs, whatever else is in the file and whoever dies."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star_export.answer.pipeline import load
from star_export.answer.sampling import Sampling
from star_export.engines import Runtime
from star_export.errors import PlatformError
from star_export.serving.batch.batch import run_batch
from star_export.serving.batch.options import BatchOptions

QUESTIONS = ("What number is written?", "What is this?", "Is there a circle?", "Which colour is the square?")
Bundles = Callable[..., Path]


def good(index: int) -> dict[str, Any]:
    """Rows of every kind of sampling and budget."""
    row: dict[str, Any] = {"id": f"good {index}", "image": ("a.png", "b.png")[index % 2]}
    row |= {"prompt": QUESTIONS[index % 4], "max_new_tokens": 6, "keep": (64, 29, 14)[index % 3]}
    if index % 2:
        row |= {"temperature": 1.5, "top_p": 0.95, "seed": index}
    return row


def write(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def options(bundle: Path, rows: Path, output: Path, **more: Any) -> BatchOptions:
    return BatchOptions(
        bundle=bundle, input=rows, output=output, **{"max_slots": 4, "runtime": Runtime(threads=1), **more}
    )


def read(folder: Path, pattern: str = "part-*.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted(folder.glob(pattern)) for line in part.open("rb")]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def bad(data: Path) -> list[tuple[Any, str]]:
    """Every kind of badness, and a few words of why."""
    (data / "cut.png").write_bytes((data / "a.png").read_bytes()[:300])
    (data / "note.txt").write_text("no picture at all, but text of more than sixty-four letters")
    Image.new("RGB", (4000, 2)).save(data / "thin.png")
    image = {"image": "a.png"}
    ask = {**image, "prompt": "?"}
    told = [{"role": "assistant", "content": "?"}]
    return [
        (b"no json", "it is not JSON"),
        (b'{"image": "a.png", "prompt": "\xff\xfe"}', "it is not JSON"),
        (b'{"image": "a.png", "prompt": "\\ud83d"}', "it is not JSON"),
        (b"[" * 5000, "it is not JSON"),
        ([1, 2], "must be a JSON object, got list"),
        ({"id": "x"}, "image is missing"),
        ({"prompt": "?"}, "image is missing"),
        (image, "prompt is missing"),
        ({**ask, "id": {"a": 1}}, "id must be a text or an integer"),
        ({**ask, "image": None}, "image is missing"),
        ({**ask, "image": "gone.png"}, "gone.png is no file"),
        ({**ask, "image": "cut.png"}, "cannot be decoded"),
        ({**ask, "image": "note.txt"}, "not a picture"),
        ({**ask, "image": "thin.png"}, "the picture"),
        ({**ask, "image": "http://localhost/a.png"}, "is a web address"),
        ({**ask, "image": "data:image/png;base64,???"}, "base64"),
        ({**ask, "image": "data:text/html,<p>"}, "base64"),
        ({**ask, "image": base64.b64encode(b"x" * 99).decode()}, "not a picture"),
        ({**ask, "image": 7}, "image must be a path"),
        ({**ask, "image": {"bytes": None, "path": None}}, "image must be a path"),
        ({**ask, "image": []}, "no picture is given"),
        ({**ask, "image": ["a.png", "b.png"]}, "at most 1 picture, got 2"),
        ({**ask, "prompt": ""}, "prompt is empty"),
        ({**ask, "prompt": " "}, "prompt is empty"),
        ({**ask, "prompt": 7}, "prompt"),
        ({**ask, "prompt": "word " * 500}, "text tokens"),
        ({**ask, "prompt": "<image><image>?"}, "2 <image> tokens, expected 1"),
        ({**image, "messages": told}, "expected the user's"),
        ({**image, "messages": []}, ""),
        ({**image, "messages": [{"role": "user"}]}, "content"),
        ({**ask, "messages": told}, "prompt and messages are both given"),
        ({**ask, "keep": 0}, "keep"),
        ({**ask, "keep": 518}, "is not below the 518 tokens"),
        ({**ask, "keep": "64"}, "keep"),
        ({**ask, "keep": [518]}, ""),
        ({**ask, "max_new_tokens": 0}, "max_new_tokens must be from 1 to"),
        ({**ask, "max_new_tokens": 10**30}, "max_new_tokens"),
        ({**ask, "max_new_tokens": 1.5}, "max_new_tokens"),
        ({**ask, "temperature": -1}, "temperature must be"),
        ({**ask, "temperature": True}, "temperature"),
        ({**ask, "top_p": 2}, "top_p must be"),
        ({**ask, "seed": -1}, "seed must not be negative"),
        ({**ask, "stop": "x"}, "stop"),
        ({**ask, "stop": [""]}, "stop"),
        ({**ask, "timeout_s": 0}, "timeout_s must be above 0"),
        ({**ask, "timeout_s": 1e-9}, "longer than"),
        ({**ask, "temperatur": 1}, "did you mean temperature"),
    ]


def test_good_rows_among_every_kind_of_bad_ones(bundle: Bundles, data: Path, tmp_path: Path) -> None:
    """Good rows are answered as single runs answer them; each bad one is named with its reason."""
    wrong = bad(data)
    rows = [row for index, (other, _) in enumerate(wrong) for row in (good(index), other)]
    seen: list[int] = []
    first = [good(0)] * 10  # so that the slip is behind those that are searched for columns
    given = options(
        bundle("mini"), write(data / "rows.jsonl", first + rows), tmp_path / "out", rows_per_part=20
    )
    done = run_batch(given, lambda done, _total: seen.append(done))
    assert (done.rows, done.answered, done.bad) == (len(rows) + 10, len(wrong) + 10, len(wrong))
    assert done.errors == str(tmp_path / "out/errors.jsonl")
    assert seen == list(range(len(rows) + 11))
    errors = read(tmp_path / "out", "errors.jsonl")
    assert [error["row"] for error in errors] == [10 + 2 * index + 1 for index in range(len(wrong))]
    for error, (row, words) in zip(errors, wrong, strict=True):
        assert words in error["error"], (row, error)
        assert error["kind"] == ("late" if words == "longer than" else "invalid"), error
        assert "\n" not in error["error"]
        assert len(error["error"]) < 500
    answers = read(tmp_path / "out")
    assert [row["row"] for row in answers] == [*range(10), *range(10, len(rows) + 10, 2)]
    with load(bundle("mini"), threads=1) as pipeline:
        for index, answer in enumerate(answers[10:]):
            asked = good(index)
            sampling = {key: asked[key] for key in ("temperature", "top_p", "seed") if key in asked}
            result = pipeline.generate(
                data / asked["image"], asked["prompt"], keep=asked["keep"], max_new_tokens=6,
                sampling=Sampling(**sampling),
            ).result()  # fmt: skip
            assert answer["id"] == asked["id"]
            assert (answer["text"], tuple(answer["token_ids"])) == (result.text, tuple(result.token_ids))
            assert answer["finish_reason"] == result.finish_reason
            assert answer["usage"]["stage2_tokens"] == len(result.stage2_indices)


def test_parquet_as_hugging_face_writes_it(bundle: Bundles, data: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    pictures = [(data / name).read_bytes() for name in ("a.png", "b.png")]
    rows = [
        {
            "temperature": None,
            "top_p": None,
            "seed": None,
            "answer": "?",
        }  # pyarrow looks at the first row alone
        | {**good(index), "image": {"bytes": pictures[index % 2], "path": None}, "id": index}
        for index in range(12)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), data / "rows.parquet", row_group_size=5)
    plain = write(data / "rows.jsonl", [{**good(index), "id": index} for index in range(12)])
    done = run_batch(
        options(bundle("mini"), data / "rows.parquet", tmp_path / "a", rows_per_part=8, limit=11)
    )
    assert (done.rows, done.answered, done.parts) == (11, 11, 2)
    run_batch(options(bundle("mini"), plain, tmp_path / "b", format="parquet"))
    found, expected = (
        [
            row
            for part in sorted((tmp_path / name).glob("part-*"))
            for row in parquet.read_table(part).to_pylist()
        ]
        for name in ("a", "b")
    )
    assert found == expected[:11]
    assert found[0]["id"] == "0"


def test_a_killed_job_goes_on(bundle: Bundles, data: Path, tmp_path: Path) -> None:
    """kill -9 in the middle, twice; then every byte is as if nothing had been."""
    rows = write(data / "rows.jsonl", [good(i) if i % 7 else {"id": i} for i in range(60)])
    run_batch(options(bundle("mini"), rows, tmp_path / "whole", rows_per_part=16))
    command = [sys.executable, "-m", "star_export.cli", "batch", str(bundle("mini")), "--input", str(rows)]
    command += ["--output", str(tmp_path / "cut"), "--rows-per-part", "16", "--max-slots", "4"]
    for enough in (5, 30):
        process = subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.PIPE)
        while done_rows(tmp_path / "cut") < enough:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert (tmp_path / "cut/journal.jsonl").exists()
    before = done_rows(tmp_path / "cut")
    done = run_batch(options(bundle("mini"), rows, tmp_path / "cut", rows_per_part=16))
    assert 30 <= before <= done.resumed < 60
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    again = run_batch(options(bundle("mini"), rows, tmp_path / "cut", rows_per_part=16))
    assert (again.resumed, again.rows_per_second, again.bad) == (60, None, 9)


def done_rows(folder: Path) -> int:
    """Rows that are done, seen from outside, where some are for a moment there twice."""
    rows: set[int] = set()
    for path in folder.glob("*.jsonl"):
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:  # it has just left the journal
            continue
        rows |= {json.loads(line)["row"] for line in lines if line.endswith(b"\n")}
    return len(rows)


def test_an_interrupt_keeps_what_is_done(bundle: Bundles, data: Path, tmp_path: Path) -> None:
    rows = write(data / "rows.jsonl", [good(i) for i in range(400)])
    command = [sys.executable, "-m", "star_export.cli", "batch", str(bundle("mini")), "-i", str(rows)]
    command += ["-o", str(tmp_path / "out"), "--max-slots", "4", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not done_rows(tmp_path / "out"):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert 0 < done_rows(tmp_path / "out") < 400


def test_a_schema_without_its_library_names_the_column(
    bundle: Bundles, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends, keeps what is done, and goes on once the library is there."""
    schema = {"answer": {"type": "boolean"}}
    rows = write(data / "rows.jsonl", [good(0), {**good(1), "shape": schema}])
    given = options(bundle("mini"), rows, tmp_path / "out", columns={"schema": "shape"}, max_slots=1)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "llguidance", None)
        with pytest.raises(PlatformError, match=r"^row 1: column shape needs llguidance .*run: pip install"):
            run_batch(given)
    assert run_batch(given).answered == 2
