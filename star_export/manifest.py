"""What ``manifest.json`` holds, and how manifests of every version are read.

Two versions: the *format* counts changes of the manifest and of ``preprocessor.json``,
which are upgraded while they are read; the *contract* counts changes of the graphs'
borders, which only a new build can follow.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from star_export.coherence import agree, check_contract, check_groups, check_sizes, check_spec, shortened
from star_export.contract import CONTRACT_VERSION, CacheGroup, GraphSpec, SizeRange
from star_export.errors import SettingsError
from star_export.specs import ExportSpec
from star_export.typed import convert
from star_export.upgrades import FORMAT_VERSION, UPGRADES

TIE_RULE = "equal scores keep the lower index; NaN ranks last; kept indices ascend"


@dataclass(frozen=True)
class BundleFile:
    """One file as the manifest lists it."""

    path: Annotated[str, Meta(min_length=1, max_length=255)]
    bytes: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the model came from: hub commit, or file hashes of a local folder."""

    model: str
    revision: str | None
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest in the present format; docs/bundle.md explains its keys."""

    format_version: int
    contract_version: int
    source: Source
    versions: dict[str, str]
    spec: ExportSpec
    tie_rule: str
    contract: dict[str, GraphSpec]
    groups: tuple[CacheGroup, ...]
    sizes: dict[str, SizeRange]
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)  # absent before there were any
    files: tuple[BundleFile, ...]


class WrongVersionError(ValueError):
    """A manifest that is in order, but not for this star-export."""


def is_manifest(values: object) -> bool:
    """Whether JSON values are a manifest of ours, whatever its version and damage."""
    return isinstance(values, dict) and values.keys() >= {"format_version", "spec", "contract", "files"}


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest of any older format in the present one.

    Raises:
        WrongVersionError: If its format is newer or none, or its contract is another.
    """
    version = values["format_version"]
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise WrongVersionError(
            f"has bundle format {shortened(repr(version))}, this star-export reads 1 to {FORMAT_VERSION}; "
            "upgrade star-export or build the bundle again"
        )
    for step in range(version, FORMAT_VERSION):
        values = UPGRADES[step](values)
    found = values.get("contract_version")
    if type(found) is int and found != CONTRACT_VERSION:
        remedy = "upgrade star-export" if found > CONTRACT_VERSION else "build the bundle again"
        raise WrongVersionError(
            f"has graphs of contract {found}, this star-export runs contract {CONTRACT_VERSION}; {remedy}"
        )
    return values


def read_manifest(values: dict[str, Any]) -> Manifest:
    """An upgraded manifest, its values of their types and coherent.

    Raises:
        ValueError: With the path of the value, what was expected and what was found.
    """
    manifest = convert(values, Manifest)
    spec = manifest.spec
    try:
        check_spec(spec)
    except SettingsError as error:
        raise ValueError(f"spec: {error}") from error
    check_groups(manifest.groups, spec)
    check_contract(manifest.contract, spec)
    check_sizes(manifest.sizes, spec)
    agree("tie_rule", TIE_RULE, manifest.tie_rule)
    return manifest
