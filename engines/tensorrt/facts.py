"""What the manifest says about a bundle's engines, and what a machine needs to run them.

An engine belongs to one TensorRT version and to the GPUs it was built for. Both
are compared here, before anything is deserialised, so that the error can name
both sides and the command that mends it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from star_export.bundle import Bundle
from star_export.contract import DECODE, GRAPHS, PREFILL, Dim, GraphSpec, capacity_symbols
from star_export.engines.tensorrt.bindings import PRODUCTS, TENSORRT
from star_export.errors import BundleError, SettingsError, option
from star_export.specs import ExportSpec
from star_export.specs.values import Count
from star_export.typed import convert

#: A target of full TensorRT's ``--hardware-compatible`` engines: sm80 and everything newer.
AMPERE_PLUS = "sm80+"

Shape = tuple[Annotated[int, Meta(ge=0)], ...]


@dataclass(frozen=True)
class Profile:
    """Smallest, typical and largest shape of one input; engines refuse anything outside."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True, kw_only=True)
class SmallerEngines:
    """Prefill and decode for KV caches with less room than the bundle's.

    Attributes:
        room: Tokens of text and answer that the caches have room for, besides as many visual ones as ever.
        profiles: Per graph and dynamic input, the shapes it accepts.
        files: Per graph, the engine's path inside the bundle.
    """

    room: Count
    profiles: dict[str, dict[str, Profile]]
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """One backend's engines as the manifest lists them.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        version: Version of the library that built them.
        targets: GPUs they run on: ``sm89``, ..., or ``sm80+``.
        plugins: Where ``TopKGather`` comes from: ``aot``, ``library`` or ``none``.
        version_compatible: Whether newer versions of the same major number run them too.
        weight_streaming: Whether weights may stay in host memory.
        driver: CUDA driver version of the building machine, such as ``13.0``; None without one.
        profiles: Per graph and dynamic input, the shapes it accepts.
        files: Per graph, the engine's path inside the bundle.
        weights_files: SHA-256 in hex of the weights files whose tensors are inputs of the engines, by their
            paths inside the bundle; none where weights are constants inside each engine.
        smaller: Further engines for requests of less text and answer, by ascending room.
    """

    backend: str
    version: Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})*$")]
    targets: tuple[str, ...]
    plugins: Annotated[str, Meta(pattern="^(aot|library|none)$")]
    version_compatible: bool
    weight_streaming: bool
    driver: str | None
    profiles: dict[str, dict[str, Profile]]
    files: dict[str, str]
    weights_files: dict[str, str] = field(default_factory=dict)  # absent before engines could share them
    smaller: tuple[SmallerEngines, ...] = ()  # absent before there were any

    @property
    def max_batch(self) -> int:
        """Sequences that one decode step may have."""
        return max(profile.max[0] for profile in self.profiles["decode"].values())

    def by_capacities(self, spec: ExportSpec) -> "dict[tuple[int, ...], SmallerEngines | EngineFacts]":
        """Its engines by the capacities of the KV caches that they take, the smallest first.

        Those of the bundle's own capacities, which come last, are the ones with the vision graph.
        """
        smaller = {spec.capacities_with(engines.room): engines for engines in self.smaller}
        return {**smaller, spec.capacities: self}

    def check_library(self, library: Path | None) -> None:
        """Refuse to go without the plugin library that they call; compiled-in kernels need none.

        Raises:
            SettingsError: If it is not given.
        """
        if self.plugins == "library" and library is None:
            raise SettingsError(
                f"these engines call a plugin library; give its path with {option('plugin_library')}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :func:`star_export.typed.convert` reads them back."""
        return asdict(self)


#: Where a bundle keeps the engines of all backends, relative to its folder.
ENGINES = "engines"


def engine_folder(backend: str) -> str:
    """Where a bundle keeps a backend's engines, relative to its folder."""
    return f"{ENGINES}/{backend}"


def engine_path(backend: str, graph: str, room: int | None = None) -> str:
    """Where a bundle keeps one engine, relative to its folder; ``room`` is that of a smaller one."""
    return f"{engine_folder(backend)}/{graph}{'' if room is None else f'-{room}'}.engine"


def rebuild_command(folder: Path, backend: str) -> str:
    """What to type when engines are missing or do not fit."""
    return f"star-export build --from-bundle {folder} --backend {backend}"


def read_facts(bundle: Bundle, backend: str) -> EngineFacts:
    """A bundle's engines for one backend.

    Raises:
        BundleError: If it has none, or the manifest's entry is damaged.
    """
    command = rebuild_command(bundle.folder, backend)
    entry = bundle.manifest.get("engines", {}).get(backend)
    if entry is None:
        raise BundleError(f"{bundle.folder} has no {backend} engines; make them: {command}")
    try:
        facts = convert(entry, EngineFacts)
        _check_engines(facts, bundle, backend)
    except ValueError as error:
        raise BundleError(
            f"{bundle.folder}: the manifest's {backend} entry is damaged ({error}); run: {command}"
        ) from error
    hashes = {file.path: file.sha256 for file in bundle.files}
    if changed := [name for name, was in facts.weights_files.items() if hashes.get(name) != was]:
        raise BundleError(
            f"{bundle.folder}: the {backend} engines take their weights from {', '.join(changed)}, "
            f"which is not what they were built with; run: {command}"
        )
    return facts


def _check_engines(facts: EngineFacts, bundle: Bundle, backend: str) -> None:
    """Refuse engines that are not there, or not of the bundle's graphs.

    Raises:
        ValueError: With what is wrong.
    """
    spec, listed = bundle.spec, {file.path for file in bundle.files}
    rooms = [engines.room for engines in facts.smaller]
    if rooms != sorted(set(rooms)) or max(rooms, default=0) >= spec.room:
        raise ValueError("its smaller engines are not in order")
    for capacities, engines in facts.by_capacities(spec).items():
        graphs = GRAPHS if engines is facts else (PREFILL, DECODE)
        paths = [engines.files.get(graph) for graph in graphs]
        if facts.backend != backend or len(engines.files) != len(paths) or not listed.issuperset(paths):
            raise ValueError("its files are not those of the bundle")
        wanted = {graph: bundle.contract[graph] for graph in graphs}
        sizes = dict(zip(capacity_symbols(spec), capacities, strict=True))
        if not _profiles_fit(engines.profiles, wanted, sizes):
            raise ValueError("its profiles are not those of the bundle's graphs")


def _profiles_fit(
    found: Mapping[str, Mapping[str, Profile]], contract: Mapping[str, GraphSpec], sizes: Mapping[str, int]
) -> bool:
    """Whether every dynamic input, and no other, has a range of its rank and of the sizes that are known."""
    shapes = {
        graph: {tensor.name: tensor.shape for tensor in io.inputs if not all(map(_fixed, tensor.shape))}
        for graph, io in contract.items()
    }
    names = {graph: {*inputs} for graph, inputs in shapes.items()}
    return names == {graph: {*inputs} for graph, inputs in found.items()} and all(
        _fits(profile, shapes[graph][name], sizes)
        for graph, inputs in found.items()
        for name, profile in inputs.items()
    )


def _fits(profile: Profile, shape: Sequence[Dim], sizes: Mapping[str, int]) -> bool:
    corners = profile.min, profile.opt, profile.max
    if {*map(len, corners)} != {len(shape)}:
        return False
    ranges = zip(shape, *corners, strict=True)
    return all(
        low <= typical <= high and (str(dim) not in sizes or low == high == sizes[str(dim)])
        for dim, low, typical, high in ranges
    )


def _fixed(size: Dim) -> bool:
    return isinstance(size, int)


def check_runnable(bundle: Bundle, facts: EngineFacts, *, version: str, capability: tuple[int, int]) -> None:
    """Refuse engines that this machine cannot run, before they are deserialised.

    Args:
        bundle: Whose engines they are.
        facts: The manifest's entry.
        version: Version of the TensorRT that is installed here.
        capability: Compute capability of the GPU, such as ``(8, 9)``.

    Raises:
        BundleError: With both versions or GPUs and the rebuild command.
    """
    command = rebuild_command(bundle.folder, facts.backend)
    if not _version_fits(facts, version):
        raise BundleError(
            f"{bundle.folder}: the engines were built by {facts.backend} {facts.version}, "
            f"this machine has {version}; build them again: {command}"
        )
    target = "sm{}{}".format(*capability)
    if not (target in facts.targets or (AMPERE_PLUS in facts.targets and capability >= (8, 0))):
        raise BundleError(
            f"{bundle.folder}: the {facts.backend} engines were built for {', '.join(facts.targets)}, "
            f"this GPU is {target}; {_remedy(bundle, facts, target)}"
        )


def _remedy(bundle: Bundle, facts: EngineFacts, target: str) -> str:
    command, targets = rebuild_command(bundle.folder, facts.backend), PRODUCTS[facts.backend].targets
    if not targets:
        return f"build them here: {command}"
    if target in targets:
        return f"build them again: {command} --target {target}"
    return f"{facts.backend} does not build for it: {rebuild_command(bundle.folder, TENSORRT)}"


def _version_fits(facts: EngineFacts, version: str) -> bool:
    """Engines belong to one version; version-compatible ones also to newer ones of its major number."""
    built, here = _version_numbers(facts.version), _version_numbers(version)
    if facts.version_compatible:
        return built[0] == here[0] and here >= built
    return built == here


def _version_numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:4]]
