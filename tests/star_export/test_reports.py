"""Reports in a bundle say what they were about, and whether that is what is there now."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from star_export.bundle import Bundle, open_bundle, write_engines, write_manifest
from star_export.reports import StoredReport, read_reports, store_report

DATA = Path(__file__).parents[1] / "data"
CHECK = "reports/check-onnxruntime.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A real bundle, free to be changed."""
    return Path(shutil.copytree(DATA / "bundle-format-2-star", tmp_path / "bundle"))


def store(bundle: Bundle, what: str = "check", backend: str = "onnxruntime", **other: Any) -> None:
    values = {"passed": True, "summary": "passed, 2 cases", "versions": {"torch": "2"}, "settings": {}}
    store_report(bundle, what=what, backend=backend, **(values | {"result": {"cases": []}} | other))


def change(folder: Path, *names: str) -> Bundle:
    """Other files, which the manifest knows, in the place of some."""
    opened = open_bundle(folder)
    for name in names:
        with (folder / name).open("ab") as file:
            file.write(b"\n")
    written = opened.manifest
    write_manifest(folder, opened.spec, source=written["source"], versions=written["versions"])
    return open_bundle(folder, verify=True)


def add_engines(folder: Path, backend: str, content: str) -> Bundle:
    """A file that stands for an engine, listed as `build` would."""
    bundle, path = open_bundle(folder), f"engines/{backend}/decode.engine"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(content)
    write_engines(bundle, backend, {"version": "10.16", "files": {"decode": path}})
    return open_bundle(folder, verify=True)


def states(bundle: Bundle) -> dict[str, str]:
    return {stored.file: stored.state for stored in read_reports(bundle)}


def test_a_report_says_what_it_was_about(folder: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    store(open_bundle(folder), settings={"keep": [64]})
    written = json.loads((folder / CHECK).read_text())
    assert before <= datetime.fromisoformat(written["made"]) <= datetime.now(UTC)
    assert written["made"].endswith("Z")
    names = ["tokenizer.json", "preprocessor.json"]
    names += [path.relative_to(folder).as_posix() for path in folder.glob("graphs/*")]
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    assert written["subject"] == hashes
    assert {"python", "star-export", "onnxruntime", "torch"} == written["versions"].keys()
    assert (written["settings"], written["result"]) == ({"keep": [64]}, {"cases": []})
    [stored] = read_reports(open_bundle(folder, verify=True))
    assert str(stored) == f"check on onnxruntime, {written['made']}: passed, 2 cases; current"
    assert stored.to_dict()["report"] == written


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        (["graphs/vision.onnx"], "out of date: vision.onnx differs"),
        (["graphs/decoder.safetensors", "tokenizer.json"],
         "out of date: decoder.safetensors, tokenizer.json differ"),
        (["preprocessor.json"], "out of date: preprocessor.json differs"),
        (["config.json"], "current"),
    ],
)  # fmt: skip
def test_other_files_than_the_reports(folder: Path, changed: list[str], state: str) -> None:
    store(open_bundle(folder))
    bundle = change(folder, *changed)
    assert states(bundle) == {CHECK: state}
    store(bundle)
    assert states(bundle) == {CHECK: "current"}


def test_a_file_more_or_less_is_another_subject(folder: Path) -> None:
    store(open_bundle(folder))
    values = json.loads((folder / CHECK).read_text())
    values["subject"]["graphs/gone.safetensors"] = values["subject"].pop("graphs/decode.onnx")
    (folder / CHECK).write_text(json.dumps(values))
    assert states(open_bundle(folder)) == {CHECK: "out of date: decode.onnx, gone.safetensors differ"}


def test_engines_are_the_subject_of_their_own_reports_alone(folder: Path) -> None:
    store(open_bundle(folder))
    bundle = add_engines(folder, "tensorrt", "first")
    store(bundle, backend="tensorrt")
    store(bundle, "eval shapes test", "tensorrt")
    assert json.loads((folder / "reports/check-tensorrt.json").read_text())["versions"]["tensorrt"] == "10.16"
    own = ["reports/check-tensorrt.json", "reports/eval-shapes-test-tensorrt.json"]
    everything = [CHECK, *own]
    assert states(add_engines(folder, "tensorrt-rtx", "other")) == dict.fromkeys(everything, "current")
    outdated = "out of date: decode.engine differs"
    assert states(add_engines(folder, "tensorrt", "second")) == {
        CHECK: "current",
        **dict.fromkeys(own, outdated),
    }
    write_engines(open_bundle(folder), "tensorrt", None)
    assert states(open_bundle(folder))[own[0]] == outdated


def test_a_report_replaces_none_but_its_own(folder: Path) -> None:
    bundle = open_bundle(folder)
    for what, backend in (("check", "onnxruntime"), ("eval shapes test", "onnxruntime"),
                          ("eval shapes train", "onnxruntime"), ("check", "onnxruntime-cuda")):  # fmt: skip
        store(bundle, what, backend)
    store(bundle, passed=False, summary="FAILED, 2 cases")
    assert [stored.report.summary for stored in read_reports(bundle) if stored.report] == [
        "passed, 2 cases",  # on onnxruntime-cuda
        "FAILED, 2 cases",
        "passed, 2 cases",
        "passed, 2 cases",
    ]
    assert len(list((folder / "reports").iterdir())) == 4


@pytest.mark.parametrize(
    "name", ["parity.json", "reports/check-onnxruntime.json", "reports/eval-shapes-test-tensorrt.json"]
)
def test_reports_may_be_added_later(folder: Path, name: str) -> None:
    (folder / "reports").mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    open_bundle(folder, verify=True)
    write_manifest(folder, open_bundle(folder).spec, source={"model": "x", "revision": None}, versions={})
    assert name not in {file.path for file in open_bundle(folder).files}


def test_what_check_wrote_before(folder: Path) -> None:
    old = {"passed": True, "bundle": "b", "backend": "tensorrt", "dtype": "float16", "cases": [{}], "x": 1}
    (folder / "parity.json").write_text(json.dumps(old))
    bundle = open_bundle(folder, verify=True)
    [stored] = read_reports(bundle)
    assert str(stored) == "check on tensorrt: passed, 1 case; says nothing of what it was about"
    assert stored.to_dict()["differ"] == ()
    store(bundle, "eval shapes test")
    assert (folder / "parity.json").exists()
    store(bundle)
    assert not (folder / "parity.json").exists()


def edited(**values: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | values).encode()


@pytest.mark.parametrize(
    ("name", "damage", "fault"),
    [
        (CHECK, lambda data: b"", "it is not JSON"),
        (CHECK, lambda data: data[:-40], "it is not JSON"),
        (CHECK, lambda data: b"\xff" + data, "it is not JSON"),
        (CHECK, lambda data: b"[]", "expected object, got array"),
        (CHECK, edited(passed="yes"), "passed: expected bool, got str, found 'yes'"),
        (CHECK, edited(subject={"a": 5}), "subject"),
        (CHECK, edited(colour="red"), "colour: unknown to this version"),
        (CHECK, edited(**{"a\x1b[31m\nb": 1}), "a [31m b: unknown to this version"),
        ("reports/mine.txt", lambda data: b"notes", "it is not JSON"),
        ("parity.json", lambda data: b"5", "expected object, got int"),
        ("parity.json", lambda data: b'{"passed": true}', "object missing required field"),
    ],
)
def test_a_damaged_report_is_one_line(
    folder: Path, name: str, damage: Callable[[bytes], bytes], fault: str
) -> None:
    bundle = open_bundle(folder)
    store(bundle)
    (folder / name).write_bytes(damage((folder / CHECK).read_bytes()))
    [damaged] = [stored for stored in read_reports(bundle) if stored.report is None]
    assert str(damaged).startswith(f"{name}: no report: ")
    assert fault in str(damaged)
    assert str(damaged).isprintable()
    assert json.loads(json.dumps(damaged.to_dict()))["report"] is None


def test_a_report_prints_one_line_whatever_it_says(folder: Path) -> None:
    bundle = open_bundle(folder)
    store(bundle, summary="passed\x1b[2J\n\x9bA\r, 2 cases")
    assert str(read_reports(bundle)[0]).isprintable()


def test_what_is_no_file(folder: Path) -> None:
    (folder / CHECK).mkdir(parents=True)
    (folder / "reports/link.json").symlink_to("/nowhere")
    (folder / "reports/.check.json.x7").write_text("")  # what a killed check leaves
    found = read_reports(open_bundle(folder, verify=True))
    assert [(stored.file, stored.fault) for stored in found] == [
        (CHECK, "it is no file"),
        ("reports/link.json", "it is no file"),
    ]


def in_the_way(folder: Path) -> None:
    (folder / "reports").write_text("")


def read_only(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    folder.chmod(0o555)


@pytest.mark.parametrize("obstacle", [in_the_way, read_only])
def test_a_bundle_that_takes_no_report(
    folder: Path, obstacle: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = open_bundle(folder)
    obstacle(folder)
    with caplog.at_level(logging.WARNING):
        store(bundle)
    [line] = caplog.messages
    assert line.startswith(f"{folder / CHECK} cannot be written, so this report is not stored: ")
    assert read_reports(bundle) == list[StoredReport]()
