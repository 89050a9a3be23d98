"""The bundle: a folder that holds everything a model needs to run.

``manifest.json`` describes it and carries the SHA-256 of every other file.
Paths in a manifest are relative and stay inside the folder. ``parity.json``,
which ``check`` adds later, is the only file the manifest does not list.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from star_export.contract import GRAPHS, contract
from star_export.errors import BundleError
from star_export.files import sha256, write_json
from star_export.specs import ExportSpec

FORMAT_VERSION = 1

MANIFEST = "manifest.json"
PARITY = "parity.json"
TOKENIZER = "tokenizer.json"
PREPROCESSOR = "preprocessor.json"
CONFIG = "config.json"
GRAPH_FOLDER = "graphs"

TIE_RULE = "equal scores keep the lower index; NaN ranks last; kept indices ascend"

#: Files above this size are hashed by ``inspect`` and ``check`` only, not at every load.
HASH_AT_LOAD_BYTES = 64 << 20


@dataclass(frozen=True)
class BundleFile:
    """One file as the manifest lists it."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, its spec and its manifest.

    Attributes:
        folder: Where it lies.
        spec: What was exported.
        manifest: The whole manifest as JSON values.
        files: The files it consists of.
    """

    folder: Path
    spec: ExportSpec
    manifest: dict[str, Any]
    files: tuple[BundleFile, ...]

    def path(self, name: str) -> Path:
        """The file called ``name`` in the manifest."""
        return self.folder / name

    def graph_path(self, graph: str) -> Path:
        """The ONNX file of ``vision``, ``prefill`` or ``decode``."""
        return self.folder / GRAPH_FOLDER / f"{graph}.onnx"


def write_manifest(
    folder: Path,
    spec: ExportSpec,
    *,
    source: dict[str, Any],
    versions: dict[str, str],
    engines: dict[str, Any] | None = None,
) -> None:
    """Hash every file in ``folder`` and write its manifest, last of all.

    Args:
        folder: A folder with all of the bundle's files.
        spec: What was exported.
        source: Where the model came from, with its revision or file hashes.
        versions: Version of every tool that took part.
        engines: By backend, what `star_export.engines.tensorrt.facts` says of its engines.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": source,
        "versions": versions,
        "spec": spec.to_dict(),
        "tie_rule": TIE_RULE,
        "contract": {graph: io.to_dict() for graph, io in contract(spec).items()},
        "cache_capacities": {"early": spec.early_capacity, "late": spec.late_capacity},
        "engines": engines or {},
        "files": [_listed(folder, name) for name in names if name not in (MANIFEST, PARITY)],
    }
    write_json(folder / MANIFEST, manifest)


def write_engines(bundle: Bundle, backend: str, facts: dict[str, Any] | None) -> None:
    """Replace a backend's engines in the manifest; every other file keeps its entry.

    Args:
        bundle: Whose manifest is written.
        backend: Whose engines.
        facts: What to say of them, with their ``files``; None says that there are none.

    Raises:
        OSError: If the disk is full.
    """
    old = bundle.manifest.get("engines", {})
    gone = set(old.get(backend, {}).get("files", {}).values())
    new = facts["files"].values() if facts else ()
    kept = [entry for entry in bundle.manifest["files"] if entry["path"] not in gone | set(new)]
    entries = [*kept, *(_listed(bundle.folder, name) for name in new)]
    engines = {name: entry for name, entry in old.items() if name != backend}
    if facts is not None:
        engines[backend] = facts
    files = sorted(entries, key=lambda entry: entry["path"])
    write_json(bundle.folder / MANIFEST, {**bundle.manifest, "engines": engines, "files": files})


def _listed(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return {"path": name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def open_bundle(folder: str | Path, *, verify: bool = False) -> Bundle:
    """Read a bundle's manifest and check its files.

    Args:
        folder: The bundle.
        verify: Hash every file. By default files over 64 MiB (the weights) are
            only checked for their size, so that loading stays quick.

    Raises:
        BundleError: If it is no bundle, from a newer version, unsafe, incomplete or changed.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    try:
        spec = ExportSpec.from_dict(manifest["spec"])
        files = tuple(BundleFile(**entry) for entry in manifest["files"])
        _check_types(manifest, spec)
        for file in files:
            _check_file(folder, file, verify=verify)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise BundleError(f"{folder / MANIFEST} is damaged ({error!r}); build the bundle again") from error
    required = {TOKENIZER, PREPROCESSOR, *(f"{GRAPH_FOLDER}/{graph}.onnx" for graph in GRAPHS)}
    if missing := required - {file.path for file in files}:
        raise BundleError(f"{folder / MANIFEST} does not list {', '.join(sorted(missing))}; build again")
    return Bundle(folder, spec, manifest, files)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}; make one with `star-export build`"
        )
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is not a bundle manifest ({error}); build the bundle again") from error
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise BundleError(
            f"{folder} has bundle format {version!r}, this star-export reads 1 to {FORMAT_VERSION}; "
            "upgrade star-export or build the bundle again"
        )
    return dict(manifest)


def _check_types(manifest: dict[str, Any], spec: ExportSpec) -> None:
    """Refuse wrong types and a contract that the spec does not give."""
    for value in (spec.max_text_tokens, spec.max_new_tokens, spec.model.vision.num_patches):
        if type(value) is not int or value < 1:
            raise ValueError(f"{value!r} is not a positive number")
    dict(manifest["versions"])
    engines = manifest.get("engines", {})
    if not isinstance(engines, dict):
        raise ValueError("its engines are not listed by backend")
    for facts in engines.values():
        if not isinstance(facts["version"], str) or not all(isinstance(t, str) for t in facts["targets"]):
            raise ValueError("an entry of its engines has no version or targets")
    if not isinstance(manifest["source"]["model"], str) or "revision" not in manifest["source"]:
        raise ValueError("the source model is missing")
    if manifest["contract"] != {graph: io.to_dict() for graph, io in contract(spec).items()}:
        raise ValueError("the contract does not fit the spec")


def _check_file(folder: Path, file: BundleFile, *, verify: bool) -> None:
    relative = PurePosixPath(file.path)
    path = folder / relative
    if relative.is_absolute() or ".." in relative.parts or not _inside(path, folder):
        raise BundleError(f"{folder / MANIFEST} names {file.path}, which leaves the bundle; do not use it")
    if not path.is_file():
        raise BundleError(f"{folder} lacks {file.path}; copy the whole bundle again or rebuild it")
    size = path.stat().st_size
    if size != file.bytes:
        raise BundleError(f"{path} has {size} bytes, the manifest says {file.bytes}; copy or build it again")
    if (verify or size <= HASH_AT_LOAD_BYTES) and sha256(path) != file.sha256:
        raise BundleError(f"{path} differs from the SHA-256 in the manifest; copy or build it again")


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
