"""Bundles that somebody made to do harm: `star_run` ends with one line, as `star-export run` does."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from tests.cpp.talker import BUILD

LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
SHAPES = Path(__file__).parents[2] / "docs/shapes.png"

Change = Callable[[Any], Any]


def _resign(folder: Path) -> None:
    """Has the manifest name the files as they are now, as who means harm would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for file in manifest["files"]:
        content = (folder / file["path"]).read_bytes()
        file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(manifest))


def _edit(folder: Path, name: str, change: Change) -> None:
    path = folder / name
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    if name != "manifest.json":
        _resign(folder)


def _at(*path: Any, value: Any) -> Change:
    def change(values: Any) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


def _nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


_GROWS = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64}] * 50
_FAR = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "q", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"q": {"id": "q", "ids": [2**32 - 1], "tokens": ["q"]}},
}


def _another_file(path: str) -> Change:
    return lambda manifest: manifest["files"].append({**manifest["files"][0], "path": path})


EDITS: dict[str, tuple[str, Change]] = {
    "normalizers in each other": ("tokenizer.json", _at("normalizer", value=_nested(100))),
    "text that grows": (
        "tokenizer.json",
        _at("normalizer", value={"type": "Sequence", "normalizers": _GROWS}),
    ),
    "ids past the model's": ("tokenizer.json", _at("post_processor", value=_FAR)),
    "negative id": ("tokenizer.json", _at("model", "vocab", "zz", value=-1)),
    "merges of nothing": ("tokenizer.json", _at("model", "merges", value=[["\0", "\0"]])),
    "decoder that grows": (
        "tokenizer.json",
        _at("decoder", value={"type": "Strip", "content": "ab", "start": 2**32, "stop": -1}),
    ),
    "no pixels": ("preprocessor.json", _at("image", "shortest_edge", value=0)),
    "division by zero": ("preprocessor.json", _at("image", "std", value=[0, 0, 0])),
    "unknown resampling": ("preprocessor.json", _at("image", "resample", value=6)),
    "empty image token": ("preprocessor.json", _at("prompt", "image_token", value="")),
    "long prompt": ("preprocessor.json", _at("prompt", "forms", "start", value="x" * 1_000_000)),
    "layers": ("manifest.json", _at("spec", "model", "text", "num_layers", value=1024)),
    "caches": ("manifest.json", _at("spec", "max_new_tokens", value=2**31)),
    "patches": ("manifest.json", _at("spec", "model", "vision", "patch_size", value=1)),
    "path of NUL": ("manifest.json", _another_file("a\0b")),
    "path of a device": (
        "manifest.json",
        _another_file("/dev/zero"),
    ),
}


def _weights(change: Callable[[dict[str, Any]], Any] | None, length: int | None) -> Callable[[Path], None]:
    """Another header, or one that says that it is of another length."""

    def attack(folder: Path) -> None:
        path = folder / "graphs/decoder.safetensors"
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
        if change is not None:
            change(header)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + rest)
        _resign(folder)

    return attack


def _first(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: next(v for k, v in header.items() if k != "__metadata__").update(values)


def _cut(name: str, length: int) -> Callable[[Path], None]:
    def attack(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:length])
        _resign(folder)

    return attack


def _instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def attack(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return attack


def _manifest(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def attack(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_bytes(change(path.read_bytes()))

    return attack


ATTACKS: dict[str, Callable[[Path], None]] = {
    "header of 2^63 bytes": _weights(None, 2**63),
    "header of 2^64-1 bytes": _weights(None, 2**64 - 1),
    "header of no bytes": _weights(None, 0),
    "values before themselves": _weights(_first(data_offsets=[64, 0]), None),
    "values outside": _weights(_first(data_offsets=[0, 2**62]), None),
    "shape of too many": _weights(_first(shape=[2**32, 2**32]), None),
    "unknown type": _weights(_first(dtype="F1000"), None),
    "no tensors": _weights(lambda header: header.clear(), None),
    "weights of 7 bytes": _cut("graphs/decoder.safetensors", 7),
    "half the weights": _cut("graphs/decoder.safetensors", 100_000),
    "half a graph": _cut("graphs/prefill.onnx", 5_000),
    "no graph": _cut("graphs/vision.onnx", 0),
    "half a tokenizer": _cut("tokenizer.json", 1_000),
    "pipe": _instead("tokenizer.json", os.mkfifo),
    "endless manifest": _instead("manifest.json", lambda path: path.symlink_to("/dev/zero")),
    "endless weights": _instead("graphs/decoder.safetensors", lambda path: path.symlink_to("/dev/zero")),
    "link to itself": _instead("preprocessor.json", lambda path: path.symlink_to(path.name)),
    "folder": _instead("graphs/decode.onnx", lambda path: path.mkdir()),
    "deep manifest": _manifest(lambda content: b"[" * 1_000_000),
    "more behind NUL": _manifest(lambda content: content + b"\0{"),
    "infinite version": _manifest(lambda content: content.replace(b'_version": 5', b'_version": 1e999')),
}
ATTACKS |= {name: lambda folder, edit=edit: _edit(folder, *edit) for name, edit in EDITS.items()}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_bundle(bundle: Any, tmp_path: Path, name: str) -> None:
    program = BUILD / "star_run"
    if not program.is_file():
        pytest.skip(f"no {program}: build engines/cpp, or set STAR_EXPORT_CPP to its build folder")
    folder = Path(shutil.copytree(bundle("mha"), tmp_path / "bundle"))
    ATTACKS[name](folder)
    command = [
        program,
        folder,
        "-i",
        SHAPES,
        "-p",
        "What a day is it?",
        "--onnxruntime",
        LIBRARY,
        "--threads",
        "1",
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert "unexpected: " not in found.stderr
