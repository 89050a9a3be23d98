"""A bundle that is damaged, unsafe or of another version is refused, and says why."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_export import bundle as layout
from star_export.bundle import open_bundle, write_manifest
from star_export.contract import contract
from star_export.errors import BundleError

WEIGHTS = "graphs/decoder.safetensors"


@pytest.fixture
def folder(bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a real bundle, free to be damaged."""
    return Path(shutil.copytree(bundle("mha"), tmp_path / "bundle"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply ``change`` to the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def refused(folder: Path, message: str, *, verify: bool = False) -> None:
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, verify=verify)


@pytest.mark.parametrize("verify", [False, True])
def test_opens(folder: Path, verify: bool) -> None:
    opened = open_bundle(folder, verify=verify)
    assert opened.folder == folder
    assert (opened.spec.star.keep, opened.spec.star.max_keep) == (64, 288)  # type: ignore[union-attr]
    assert opened.graph_path("decode") == folder / "graphs" / "decode.onnx"
    assert opened.manifest["format_version"] == layout.FORMAT_VERSION


def test_opens_from_a_string_and_a_relative_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert open_bundle("bundle").spec == open_bundle(str(folder)).spec


def test_manifest_lists_every_file_and_the_contract(folder: Path) -> None:
    opened = open_bundle(folder)
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {file.path for file in opened.files} == on_disk - {"manifest.json", "parity.json"}
    assert opened.manifest["contract"] == {
        name: graph.to_dict() for name, graph in contract(opened.spec).items()
    }
    assert opened.manifest["cache_capacities"] == {"early": 518 + 128 + 32, "late": 288 + 128 + 32}


def test_parity_report_may_be_added_later(folder: Path) -> None:
    (folder / layout.PARITY).write_text("{}")
    open_bundle(folder, verify=True)
    write_manifest(folder, open_bundle(folder).spec, source={"model": "x", "revision": None}, versions={})
    assert layout.PARITY not in {file.path for file in open_bundle(folder).files}


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "graphs/prefill.onnx", WEIGHTS])
def test_changed_byte(folder: Path, name: str) -> None:
    flip_byte(folder / name)
    refused(folder, re.escape(name) + " differs from the SHA-256")


def test_changed_byte_in_a_large_file_is_found_by_verify(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "HASH_AT_LOAD_BYTES", (folder / WEIGHTS).stat().st_size - 1)
    flip_byte(folder / WEIGHTS)
    open_bundle(folder)
    refused(folder, re.escape(WEIGHTS) + " differs from the SHA-256", verify=True)


@pytest.mark.parametrize("name", ["preprocessor.json", "graphs/vision.onnx", WEIGHTS])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"lacks {re.escape(name)}; copy the whole bundle again")


@pytest.mark.parametrize("name", ["tokenizer.json", WEIGHTS])
def test_truncated_file(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    os.truncate(folder / name, size - 1)
    refused(folder, f"{re.escape(name)} has {size - 1} bytes, the manifest says {size}")


@pytest.mark.parametrize("version", [layout.FORMAT_VERSION + 1, "1", None, 1.5, 0, True])
def test_other_format_version(folder: Path, version: object) -> None:
    edit(folder, lambda manifest: manifest.update(format_version=version))
    refused(folder, f"has bundle format {version!r}, this star-export reads 1 to {layout.FORMAT_VERSION}")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"5", b"{}", b"[" * 100_000])
def test_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(folder, "is not a bundle manifest")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("spec"),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(files=[5]),
        lambda manifest: manifest["files"][0].pop("sha256"),
        lambda manifest: manifest["files"][0].update(colour="red"),
        lambda manifest: manifest["spec"].pop("dtype"),
        lambda manifest: manifest["spec"]["model"].update(colour="red"),
        lambda manifest: manifest["spec"].update(star=[]),
    ],
)
def test_damaged_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder, change)
    refused(folder, "manifest.json is damaged")


@pytest.mark.parametrize("path", ["../secret", "graphs/../../secret", "graphs/../tokenizer.json"])
def test_path_that_leaves_by_dots(folder: Path, path: str) -> None:
    (folder.parent / "secret").write_text("secret")
    edit(folder, lambda manifest: manifest["files"][0].update(path=path))
    refused(folder, f"names {re.escape(path)}, which leaves the bundle")


def test_path_that_is_absolute(folder: Path) -> None:
    path = str(folder / "tokenizer.json")  # inside, but of this machine only
    edit(folder, lambda manifest: manifest["files"][0].update(path=path))
    refused(folder, "which leaves the bundle")


def test_symlink_that_leaves(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder.parent / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(folder.parent / "elsewhere.json")
    refused(folder, "names tokenizer.json, which leaves the bundle")


def test_folder_symlink_that_leaves(folder: Path) -> None:
    (folder / "graphs").rename(folder.parent / "elsewhere")
    (folder / "graphs").symlink_to(folder.parent / "elsewhere")
    refused(folder, "names graphs/.*, which leaves the bundle")


def test_symlink_that_stays_and_symlinked_bundle(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "other.json")
    (folder / "tokenizer.json").symlink_to("other.json")
    (folder.parent / "link").symlink_to(folder)
    open_bundle(folder.parent / "link", verify=True)


@pytest.mark.parametrize("name", ["graphs/decode.onnx", "tokenizer.json"])
def test_manifest_that_does_not_list_a_needed_file(folder: Path, name: str) -> None:
    edit(
        folder,
        lambda manifest: manifest.update(files=[f for f in manifest["files"] if f["path"] != name]),
    )
    refused(folder, f"does not list {re.escape(name)}")


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path, "is not a bundle: it has no manifest.json; make one with `star-export build`")


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere is not a bundle")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["spec"].update(max_text_tokens="many"),
        lambda manifest: manifest["contract"]["decode"]["inputs"].pop(),
        lambda manifest: manifest.pop("source"),
        lambda manifest: manifest["source"].pop("revision"),
        lambda manifest: manifest.update(versions=5),
        lambda manifest: manifest["files"][0].update(path=5),
        lambda manifest: manifest["files"][0].update(path="a\0b"),
        lambda manifest: manifest["files"][0].update(path="x" * 5000),
    ],
)
def test_manifest_of_wrong_types(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder, change)
    refused(folder, "manifest.json is damaged")
