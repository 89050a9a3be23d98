"""What ``manifest.json`` holds, and how manifests of every version are read.

Two versions: the *format* counts changes of the manifest and of ``preprocessor.json``,
which are upgraded while they are read; the *contract* counts changes of the graphs'
borders, which only a new build can follow.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from star_export.contract import CONTRACT_VERSION, contract
from star_export.errors import SettingsError
from star_export.specs import ExportSpec, check_capacities, check_keep, stage1_count
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
    contract: dict[str, Any]
    cache_capacities: dict[str, int]
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)  # absent before there were any
    files: tuple[BundleFile, ...]


class WrongVersionError(ValueError):
    """A manifest that is in order, but not for this star-export."""


def cache_capacities(spec: ExportSpec) -> dict[str, int]:
    """Tokens that fit into the caches of each layer group."""
    return {"early": spec.early_capacity, "late": spec.late_capacity}


def graph_contract(spec: ExportSpec) -> dict[str, Any]:
    """The contract as the manifest holds it."""
    return {graph: io.to_dict() for graph, io in contract(spec).items()}


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
            f"has bundle format {_shortened(version)}, this star-export reads 1 to {FORMAT_VERSION}; "
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
    """An upgraded manifest, its values of their types and in accord with each other.

    Raises:
        ValueError: With the path of the value, what was expected and what was found.
    """
    manifest = convert(values, Manifest)
    try:
        _check_spec(manifest.spec)
    except SettingsError as error:
        raise ValueError(f"spec: {error}") from error
    expected = {
        "contract": graph_contract(manifest.spec),
        "cache_capacities": cache_capacities(manifest.spec),
        "tie_rule": TIE_RULE,
    }
    for key, value in expected.items():
        if difference := _difference(getattr(manifest, key), value, key):
            raise ValueError(f"{difference}; it belongs to another contract, or was changed")
    return manifest


def _difference(found: Any, expected: Any, path: str) -> str | None:
    """Where two JSON values first differ, and in what."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        pairs = [_difference(found[key], expected[key], f"{path}.{key}") for key in expected]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = [
            _difference(*pair, f"{path}[{i}]") for i, pair in enumerate(zip(found, expected, strict=True))
        ]
    elif type(found) is type(expected) and found == expected:
        return None
    else:
        return f"{path}: expected {_shortened(expected)}, found {_shortened(found)}"
    return next(filter(None, pairs), None)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_spec(spec: ExportSpec) -> None:
    """Refuse values that contradict each other: they would fail, or answer nonsense, much later."""
    model, star = spec.model, spec.star
    vision, text = model.vision, model.text
    if vision.image_size % vision.patch_size:
        raise ValueError(f"spec.model.vision: {vision.image_size} px are no whole patches")
    if text.num_heads % text.num_kv_heads:
        raise ValueError(f"spec.model.text: {text.num_heads} heads cannot share {text.num_kv_heads} KV heads")
    if model.image_token_id >= text.vocab_size:
        raise ValueError(f"spec.model.image_token_id: {model.image_token_id} is outside the vocabulary")
    if star is not None:
        kept = stage1_count(patches=vision.num_patches, drop_ratio=star.drop_ratio)
        if star.stage1_keep != kept:
            raise ValueError(f"spec.star.stage1_keep: drop_ratio gives {kept}, found {star.stage1_keep}")
        if star.prune_layer >= text.num_layers:
            raise ValueError(
                f"spec.star.prune_layer: {star.prune_layer} is not below {text.num_layers} layers"
            )
        check_keep(star, star.max_keep, name="max_keep")
        check_keep(star, star.keep, name="keep")
    check_capacities(spec)
