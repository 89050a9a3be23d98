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
from star_export.bundle import check_replaceable, open_bundle, write_engines, write_manifest
from star_export.contract import CONTRACT_VERSION, contract
from star_export.errors import BundleError, SettingsError
from star_export.upgrades import FORMAT_VERSION, UPGRADES

WEIGHTS = "graphs/decoder.safetensors"


@pytest.fixture(scope="module")
def light(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle but for its weights, which only a session reads: quick to copy and to hash."""
    folder = Path(shutil.copytree(bundle("mha"), tmp_path_factory.mktemp("light") / "bundle"))
    opened = open_bundle(folder)
    written = opened.manifest
    for path in folder.glob("graphs/*.safetensors"):
        path.write_bytes(b"weights")
    write_manifest(folder, opened.spec, source=written["source"], versions=written["versions"])
    return folder


@pytest.fixture
def folder(light: Path, tmp_path: Path) -> Path:
    """A copy of it, free to be damaged."""
    return Path(shutil.copytree(light, tmp_path / "bundle"))


def open_manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it is written."""
    return dict(json.loads((folder / "manifest.json").read_text()))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply ``change`` to the manifest."""
    manifest = open_manifest(folder)
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


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
    assert [(stage.tokens, stage.max_tokens) for stage in opened.spec.schedule] == [(518, 518), (64, 288)]
    assert opened.graph_path("decode") == folder / "graphs" / "decode.onnx"
    assert opened.manifest["format_version"] == FORMAT_VERSION


def test_opens_from_a_string_and_a_relative_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert open_bundle("bundle").spec == open_bundle(str(folder)).spec


def test_manifest_lists_every_file_and_the_contract(folder: Path) -> None:
    opened = open_bundle(folder)
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    reports = {name for name in on_disk if name.startswith("reports/")}  # other tests run checks
    assert {file.path for file in opened.files} == on_disk - {"manifest.json"} - reports
    assert opened.manifest["contract"] == {
        name: graph.to_dict() for name, graph in contract(opened.spec).items()
    }
    assert opened.manifest["groups"] == [
        {"first": 0, "last": 2, "capacity": 518 + 128 + 32, "lengths": "early_lengths"},
        {"first": 3, "last": 5, "capacity": 288 + 128 + 32, "lengths": "late_lengths"},
    ]


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


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, "1", None, 1.5, 0, True])
def test_other_format_version(folder: Path, version: object) -> None:
    edit(folder, lambda manifest: manifest.update(format_version=version))
    refused(folder, f"has bundle format {version!r}, this star-export reads 1 to {FORMAT_VERSION}")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"5", b"{}", b"[" * 100_000])
def test_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(folder, "is not a bundle manifest")


def test_every_older_format_has_its_upgrade() -> None:
    assert set(UPGRADES) == set(range(1, FORMAT_VERSION))


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(CONTRACT_VERSION - 1, "build the bundle again"), (CONTRACT_VERSION + 1, "upgrade star-export")],
)
def test_graphs_of_another_contract_are_not_called_damaged(folder: Path, version: int, remedy: str) -> None:
    edit(folder, lambda manifest: manifest.update(contract_version=version, contract={"other": []}, new=1))
    refused(folder, f"has graphs of contract {version}, this star-export runs contract 1; {remedy}$")


def in_spec(*path: str, to: object) -> Callable[[dict[str, Any]], object]:
    """A change of one value of the spec."""

    def change(manifest: dict[str, Any]) -> None:
        place = manifest["spec"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


def in_stage(index: int, **values: object) -> Callable[[dict[str, Any]], object]:
    """A change of values of one stage."""
    return lambda manifest: manifest["spec"]["schedule"][index].update(values)


def in_input(**values: object) -> Callable[[dict[str, Any]], object]:
    """A change of values of prefill's first input."""
    return lambda manifest: manifest["contract"]["prefill"]["inputs"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("spec"), "object missing required field spec"),
        (lambda m: m.pop("files"), "object missing required field files"),
        (lambda m: m.pop("source"), "object missing required field source"),
        (lambda m: m.pop("contract_version"), "object missing required field contract_version"),
        (lambda m: m.update(contract_version="1"), "contract_version: expected int, got str, found '1'"),
        (lambda m: m.update(colour="red"), "colour: unknown to this version"),
        (lambda m: m.update(versions=5), "versions: expected object, got int, found 5"),
        (lambda m: m.update(engines=[]), "engines: expected object, got array"),
        (lambda m: m.update(engines={"tensorrt": 5}), r"engines\[...\]: expected object, got int;"),
        (lambda m: m["source"].pop("revision"), "source: object missing required field revision"),
        (lambda m: m["source"].update(model=None), "source.model: expected str, got null;"),
        (lambda m: m.update(files=[5]), r"files\[0\]: expected object, got int"),
        (lambda m: m["files"][2].pop("sha256"), r"files\[2\]: object missing required field sha256"),
        (lambda m: m["files"][2].update(sha256="5"), r"files\[2\].sha256: expected str matching"),
        (lambda m: m["files"][2].update(colour="red"), r"files\[2\].colour: unknown to this version"),
        (lambda m: m["files"][0].update(path=5), r"files\[0\].path: expected str, got int, found 5"),
        (lambda m: m["files"][0].update(path="x" * 256), r"files\[0\].path: expected str of length <= 255;"),
        (lambda m: m["files"][0].update(bytes=-1), r"files\[0\].bytes: expected int >= 0, found -1"),
        (
            in_stage(1, tokens="64"),
            r"spec.schedule\[1\].tokens: expected int, got str, found '64'; build the",
        ),
        (in_stage(1, tokens=64.0), r"spec.schedule\[1\].tokens: expected int, got float, found 64.0"),
        (in_stage(1, tokens=0), r"spec.schedule\[1\].tokens: expected int >= 1, found 0"),
        (in_stage(0, score="A B"), r"spec.schedule\[0\].score: expected str matching"),
        (in_spec("schedule", to={}), "spec.schedule: expected array, got object"),
        (lambda m: m.update(groups={}), "groups: expected array, got object"),
        (lambda m: m["groups"][0].pop("lengths"), r"groups\[0\]: object missing required field lengths"),
        (lambda m: m.pop("sizes"), "object missing required field sizes"),
        (lambda m: m["sizes"].update(S=5), r"sizes\[...\]: expected object, got int"),
        (lambda m: m["sizes"]["S"].update(min=0), r"sizes\[...\].min: expected int >= 1;"),
        (lambda m: m["sizes"]["S"].update(colour=1), "sizes.S.colour: unknown to this version"),
        (lambda m: m.update(contract=[]), "contract: expected object, got array"),
        (lambda m: m["contract"].update(decode=5), r"contract\[...\]: expected object, got int"),
        (in_input(dtype="int4"), r"contract\[...\].inputs\[0\].dtype: expected str matching"),
        (in_input(shape=[True]), r"inputs\[0\].shape\[0\]: expected int | str, got bool"),
        (in_input(shape=["S*2"]), r"inputs\[0\].shape\[0\]: expected str matching"),
        (in_input(role="mask"), r"inputs\[0\].role: invalid enum value 'mask'"),
        (in_input(colour=1), r"contract.prefill.inputs\[0\].colour: unknown to this version"),
        (in_spec("dtype", to="int8"), "spec.dtype: invalid enum value 'int8'"),
        (in_spec("model", "colour", to=1), "spec.model.colour: unknown to this version"),
        (in_spec("model", "vision", "patch_size", to=0), "spec.model.vision.patch_size: expected int >= 1"),
        (in_spec("model", "vision", "layer_norm_eps", to=0), "layer_norm_eps: expected float > 0.0, found 0"),
        (in_spec("model", "text", "num_layers", to=10**9), "text.num_layers: expected int <= 1024"),
        (in_spec("model", "eos_token_ids", to=[2, -1]), r"eos_token_ids\[1\]: expected int >= 0, found -1"),
        (in_spec("model", "text", "vocab_size", to=10**400), r"vocab_size|not JSON"),
    ],
)
def test_wrong_types_are_named_by_their_path(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder, change)
    refused(folder, f"manifest.json is (damaged|not a bundle manifest).*{message}")


def test_parts_that_contradict_each_other_are_damage(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["groups"].pop())
    refused(folder, "manifest.json is damaged: groups: expected 2 groups, found 1; build the bundle again")


@pytest.mark.parametrize(
    "manifest",
    [
        {"name": "Shop", "short_name": "Shop", "start_url": "/", "display": "standalone", "icons": []},
        {"manifest_version": 3, "name": "Tabs", "version": "1.0", "permissions": ["tabs"]},
        {"format_version": 2, "header": {"name": "Pack"}, "modules": []},  # a game's resource pack
        {"files": [], "spec": {}, "contract": {}},
        [],
        "text",
    ],
)
def test_folders_of_others_are_not_replaced(tmp_path: Path, manifest: object) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SettingsError, match="is not a bundle, so overwrite will not replace it"):
        check_replaceable(tmp_path)


def test_files_without_a_readable_manifest_are_not_replaced(tmp_path: Path) -> None:
    for path, content in ((tmp_path / "a" / "manifest.json", "{"), (tmp_path / "b" / "notes.txt", "mine")):
        path.parent.mkdir()
        path.write_text(content)
        for target in (path.parent, path):
            with pytest.raises(SettingsError, match="is not a bundle"):
                check_replaceable(target)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(format_version=99),
        lambda manifest: manifest.update(contract=[], spec=5),
        lambda manifest: manifest.update(format_version=1),
    ],
)
def test_bundles_in_any_state_are_replaced(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty")
    (folder / "reports").mkdir(exist_ok=True)
    for report in ("parity.json", "reports/check-onnxruntime.json"):
        (folder / report).write_text("{}")
    (folder / "config.json").unlink()
    edit(folder, change)
    check_replaceable(folder)


def test_files_beside_the_bundles_own_are_not_lost(folder: Path) -> None:
    mine = ("a.txt", "graphs/b.txt", "graphs/vision.onnx.txt", "reports/mine.json")
    notes = [folder / name for name in mine]
    for path in notes:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    message = r"also holds a.txt, graphs/b.txt, graphs/vision.onnx.txt \.\.\., so overwrite will not"
    with pytest.raises(SettingsError, match=message):
        check_replaceable(folder)
    for path in notes[:3]:
        path.unlink()
    with pytest.raises(SettingsError, match=r"also holds reports/mine.json, so"):
        check_replaceable(folder)
    notes[3].unlink()
    (folder / "link").symlink_to("/nowhere")
    with pytest.raises(SettingsError, match="also holds link, so"):
        check_replaceable(folder)


@pytest.mark.parametrize("files", [5, [5], [{}]])
def test_without_a_list_of_files_none_is_the_bundles(folder: Path, files: object) -> None:
    edit(folder, lambda manifest: manifest.update(files=files))
    with pytest.raises(SettingsError, match=r"also holds config.json, graphs/decode.onnx"):
        check_replaceable(folder)


def test_engines_of_one_backend_are_replaced_alone(folder: Path) -> None:
    def add(backend: str, *names: str) -> None:
        paths = {name: f"engines/{backend}/{name}.engine" for name in names}
        for path in paths.values():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(path)
        write_engines(open_bundle(folder), backend, {"version": "1", "files": paths})

    def listed() -> list[str]:
        return [
            file.path for file in open_bundle(folder, verify=True).files if file.path.startswith("engines")
        ]

    add("tensorrt", "decode", "vision")
    add("tensorrt-rtx", "decode")
    add("tensorrt", "prefill")
    assert listed() == ["engines/tensorrt-rtx/decode.engine", "engines/tensorrt/prefill.engine"]
    write_engines(open_bundle(folder), "tensorrt", None)
    assert listed() == ["engines/tensorrt-rtx/decode.engine"]
    assert open_manifest(folder)["engines"] == {
        "tensorrt-rtx": {"version": "1", "files": {"decode": "engines/tensorrt-rtx/decode.engine"}}
    }


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "../bundle-evil/secret",  # its path begins with that of the bundle
        "graphs/../../secret",
        "graphs/../tokenizer.json",
        "..\\secret",
        "graphs\\..\\..\\secret",
        "C:\\secret",
        "c:secret",
        "\\secret",
        "\\\\server\\share\\secret",
        "//server/share/secret",
    ],
)
def test_path_that_leaves(folder: Path, path: str) -> None:
    for place in (folder.parent, folder.parent / "bundle-evil", folder):
        place.mkdir(exist_ok=True)
        (place / "secret").write_text("secret")
        (place / path.rpartition("/")[2]).write_text("secret")  # as this system reads backslashes
    edit(folder, lambda manifest: manifest["files"][0].update(path=path))
    refused(folder, f"names {re.escape(path)}, which leaves the bundle")


def test_path_that_is_absolute(folder: Path) -> None:
    path = str(folder / "tokenizer.json")  # inside, but of this machine only
    edit(folder, lambda manifest: manifest["files"][0].update(path=path))
    refused(folder, "which leaves the bundle")


def test_symlink_that_leaves(folder: Path) -> None:
    evil = folder.parent / "bundle-evil"
    evil.mkdir()
    (folder / "tokenizer.json").rename(evil / "tokenizer.json")
    (folder / "tokenizer.json").symlink_to("../bundle-evil/tokenizer.json")
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


def test_path_that_no_file_can_have(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["files"][0].update(path="a\0b"))
    refused(folder, "manifest.json is damaged: ")
