"""The bundle: a folder that holds everything a model needs to run.

``manifest.json`` describes it and carries the SHA-256 of every other file.
Paths in a manifest are relative and stay inside the folder. Reports, which ``check`` and
``eval`` add later, are the only files that the manifest does not list.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from star_export.contract import CONTRACT_VERSION, GRAPHS, GraphSpec, cache_groups, contract, size_ranges
from star_export.errors import BundleError, SettingsError, option
from star_export.files import sha256, write_json
from star_export.manifest import (
    TIE_RULE,
    BundleFile,
    WrongVersionError,
    is_manifest,
    read_manifest,
    upgraded,
)
from star_export.specs import ExportSpec
from star_export.typed import parse
from star_export.upgrades import FORMAT_VERSION

MANIFEST = "manifest.json"
PARITY = "parity.json"  # what ``check`` wrote before there was a folder of reports
REPORTS = "reports"
TOKENIZER = "tokenizer.json"
PREPROCESSOR = "preprocessor.json"
CONFIG = "config.json"
GRAPH_FOLDER = "graphs"

#: Files above this size are hashed by ``inspect``, ``check`` and ``eval`` only, not at every load.
HASH_AT_LOAD_BYTES = 64 << 20

_UNLISTED = re.compile(rf"{re.escape(MANIFEST)}|{re.escape(PARITY)}|{REPORTS}/(check|eval)-[^/]+\.json")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, its spec and its manifest.

    Attributes:
        folder: Where it lies.
        spec: What was exported.
        contract: Inputs and outputs of each graph.
        manifest: The whole manifest as JSON values, of their types and in the present format.
        files: The files it consists of.
    """

    folder: Path
    spec: ExportSpec
    contract: dict[str, GraphSpec]
    manifest: dict[str, Any]
    files: tuple[BundleFile, ...]

    def path(self, name: str) -> Path:
        """The file called ``name`` in the manifest."""
        return self.folder / name

    @property
    def weights(self) -> list[BundleFile]:
        """The files that hold the graphs' weights."""
        return [file for file in self.files if file.path.endswith(".safetensors")]

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
    hashes: Mapping[str, str] | None = None,
) -> None:
    """Hash every file in ``folder`` and write its manifest, last of all.

    Args:
        folder: A folder with all of the bundle's files.
        spec: What was exported.
        source: Where the model came from, with its revision or file hashes.
        versions: Version of every tool that took part.
        engines: By backend, what `star_export.engines.tensorrt.facts` says of its engines.
        hashes: SHA-256 in hex of files that were hashed when they were written, by their names in ``folder``.
    """
    hashes = hashes or {}
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest = {
        "format_version": FORMAT_VERSION,
        "contract_version": CONTRACT_VERSION,
        "source": source,
        "versions": versions,
        "spec": spec.to_dict(),
        "tie_rule": TIE_RULE,
        "contract": {graph: io.to_dict() for graph, io in contract(spec).items()},
        "groups": [asdict(group) for group in cache_groups(spec)],
        "sizes": {name: size.to_dict() for name, size in size_ranges(spec).items()},
        "engines": engines or {},
        "files": [_listed(folder, name, hashes.get(name)) for name in names if not _UNLISTED.fullmatch(name)],
    }
    write_json(folder / MANIFEST, manifest)


def write_engines(bundle: Bundle, backend: str, facts: dict[str, Any] | None) -> None:
    """Replace a backend's engines in the manifest; every other file keeps its entry.

    Args:
        bundle: Whose manifest is written.
        backend: Whose engines.
        facts: What to say of them, with the ``files`` of all, of ``smaller`` ones too; None: there are none.

    Raises:
        OSError: If the disk is full.
    """
    own = PurePosixPath("engines", backend)  # whatever a damaged entry calls its files
    parts = (facts, *facts.get("smaller", ())) if facts else ()
    new = [name for part in parts for name in part["files"].values()]
    kept = [e for e in bundle.manifest["files"] if not PurePosixPath(e["path"]).is_relative_to(own)]
    entries = [*kept, *(_listed(bundle.folder, name) for name in new)]
    engines = {name: e for name, e in bundle.manifest.get("engines", {}).items() if name != backend}
    if facts is not None:
        engines[backend] = facts
    files = sorted(entries, key=lambda entry: entry["path"])
    write_json(bundle.folder / MANIFEST, {**bundle.manifest, "engines": engines, "files": files})


def _listed(folder: Path, name: str, known: str | None = None) -> dict[str, Any]:
    path = folder / name
    return {"path": name, "bytes": path.stat().st_size, "sha256": known or sha256(path)}


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
    path = folder / MANIFEST
    values = _read(folder)
    try:
        values = upgraded(values)
        manifest = read_manifest(values)
        for file in manifest.files:
            _check_file(folder, file, verify=verify)
    except WrongVersionError as error:
        raise BundleError(f"{folder} {error}") from error
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} is damaged: {error}; build the bundle again") from error
    required = {TOKENIZER, PREPROCESSOR, *(f"{GRAPH_FOLDER}/{graph}.onnx" for graph in GRAPHS)}
    if missing := required - {file.path for file in manifest.files}:
        raise BundleError(f"{path} does not list {', '.join(sorted(missing))}; build again")
    return Bundle(folder, manifest.spec, manifest.contract, values, manifest.files)


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that is no bundle, or that holds files which are not the bundle's.

    A damaged bundle and one of another version can be replaced, an empty folder too.

    Raises:
        SettingsError: With what would be lost.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        values = _read(folder)
    except BundleError:
        values = {}
    if not is_manifest(values):
        raise SettingsError(f"{folder} is not a bundle, so {option('overwrite')} will not replace it")
    entries = values["files"] if isinstance(values["files"], list) else []
    listed = {str(entry.get("path")) for entry in entries if isinstance(entry, dict)}
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    if foreign := sorted(name for name in names - listed if not _UNLISTED.fullmatch(name)):
        raise SettingsError(
            f"{folder} also holds {', '.join(foreign[:3])}{' ...' if foreign[3:] else ''}, "
            f"so {option('overwrite')} will not replace it; move what is not the bundle's elsewhere"
        )


def _read(folder: Path) -> dict[str, Any]:
    """The manifest as it was written."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}; make one with `star-export build`"
        )
    try:
        values = parse(path.read_bytes())
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} is not a bundle manifest ({error}); build the bundle again") from error
    if not isinstance(values, dict) or "format_version" not in values:
        raise BundleError(
            f"{path} is not a bundle manifest (it has no format_version); give a folder made by "
            "`star-export build`"
        )
    return values


def _check_file(folder: Path, file: BundleFile, *, verify: bool) -> None:
    relative = PureWindowsPath(file.path)  # takes both kinds of separators, and drives
    path = folder / file.path
    if relative.anchor or ".." in relative.parts or not _inside(path, folder):
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
