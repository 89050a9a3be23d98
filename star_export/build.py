"""Checkpoint in, bundle out. Needs the ``export`` extra."""

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from star_export import bundle as layout
from star_export.bundle import check_replaceable, open_bundle, write_engines, write_manifest
from star_export.calibrating import calibrated
from star_export.checkpoint.aliases import ALIASES
from star_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from star_export.checkpoint.generation_config import warn_of_unused_settings
from star_export.checkpoint.hub import split_revision
from star_export.checkpoint.shape import read_shape
from star_export.checkpoint.tensors import canonical_module
from star_export.contract import DECODE, GRAPHS, PREFILL, VISION
from star_export.engines.tensorrt.builder import (
    BAKED,
    BUILDER_COPIES,
    EngineOptions,
    build_engines,
    check_options,
    load_builder,
    weights_of,
)
from star_export.engines.tensorrt.facts import ENGINES, engine_folder
from star_export.errors import CheckpointError, PlatformError, SettingsError, option
from star_export.files import clear_scratch, staging_folder, staging_name, write_json
from star_export.preprocessing.prompts import end_token_ids
from star_export.progress import NoProgress, Progress, StepReport, Steps
from star_export.quantizing import quantization_of
from star_export.room import check_disk, check_memory
from star_export.specs import (
    DEFAULT_DROP_RATIO,
    STAR_PRESET,
    DType,
    ExportSpec,
    ImageLimits,
    ModelSpec,
    Schedule,
    check_capacities,
    check_fp32_layers,
    check_proportional,
    resolve_images,
    resolve_schedule,
    resolve_star,
    with_mass,
)

#: Weights file of each graph; prefill and decode share one.
WEIGHTS = {VISION: "vision", PREFILL: "decoder", DECODE: "decoder"}

#: Tokens that one run of decode appends at most: a question that follows an answer takes few runs.
APPEND_TOKENS = 64

#: Memory that tracing takes, of 32 to 40 decoder layers; with all packages loaded.
_TRACING_BYTES = 700_000_000

_TOOLS = ("star-export", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class BuildReport:
    """A finished build."""

    folder: Path
    spec: ExportSpec
    steps: tuple[StepReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "bundle": str(self.folder),
            "spec": self.spec.to_dict(),
            "steps": [asdict(step) for step in self.steps],
            "bytes": sum(step.bytes for step in self.steps),
        }


@dataclass(frozen=True, kw_only=True)
class SpecOptions:
    """Options of ``star-export build`` and ``plan`` that decide what a bundle is; see their help for each."""

    model: str
    keep: int | None = None
    keep_ratio: float | None = None
    max_keep: int | None = None
    drop_ratio: float = DEFAULT_DROP_RATIO
    prune_layer: int | None = None
    schedule: str | None = None
    stage1: str | None = None
    stage2: str | None = None
    prune: bool = True
    max_images: int = 1
    max_tiles: int | None = None
    max_image_tokens: int | None = None
    max_text_tokens: int = 512
    max_new_tokens: int = 512
    dtype: DType = "float32"
    quantize: str | None = None
    quantize_block: int | None = None
    quantize_vision: bool = False
    quantize_embedding: bool = False


@dataclass(frozen=True, kw_only=True)
class BuildOptions(SpecOptions):
    """Options of ``star-export build``; see its help for each."""

    output: Path
    revision: str | None = None
    keep_mass: float | None = None
    calibrate: Path | None = None
    proportional: bool = False
    fp32_layers: tuple[str, ...] = ()
    engines: EngineOptions | None = None
    chat_template: str | None = None
    end_tokens: tuple[str, ...] = ()
    overwrite: bool = False


def resolve_spec(options: BuildOptions, checkpoint: Checkpoint) -> ExportSpec:
    """Checked export settings for a checkpoint.

    Raises:
        SettingsError: If an option is out of range.
    """
    model = checkpoint.model
    names = tuple(canonical_module(name, model.model_type) for name in options.fp32_layers)
    spec = resolve_sizes(options, model, checkpoint)
    schedule = with_mass(spec.schedule, options.keep_mass)
    spec = replace(spec, schedule=schedule, fp32_layers=names, proportional=options.proportional)
    check_proportional(spec)
    if names:
        from star_export.graphs.export import layer_names

        check_fp32_layers(spec, layer_names(spec))
    return spec


def resolve_sizes(options: SpecOptions, model: ModelSpec, checkpoint: Checkpoint | None = None) -> ExportSpec:
    """The same without ``fp32_layers``, from a model's shape and a checkpoint that may be quantised.

    Raises:
        SettingsError: If an option is out of range.
        CheckpointError: If a quantised layer of the checkpoint is not complete.
    """
    text = model.text
    positions = min(text.max_position_embeddings, text.sliding_window or text.max_position_embeddings)
    images = resolve_images(
        model,
        max_images=options.max_images,
        max_tiles=options.max_tiles,
        max_image_tokens=options.max_image_tokens,
        room=positions - options.max_text_tokens - options.max_new_tokens,
    )
    how = {name: getattr(options, f"quantize_{name}") for name in ("block", "vision", "embedding")}
    spec = ExportSpec(
        model=model,
        schedule=_schedule(options, model, images),
        images=images,
        max_text_tokens=options.max_text_tokens,
        max_new_tokens=options.max_new_tokens,
        append_tokens=APPEND_TOKENS,
        dtype=options.dtype,
        quantization=quantization_of(model, checkpoint, options.quantize, **how),
    )
    check_capacities(spec)
    return spec


def _schedule(options: SpecOptions, model: ModelSpec, images: ImageLimits) -> Schedule:
    """STAR's schedule, or the one that is asked for."""
    if not options.prune:
        _refuse(options, _BUDGETS | _SCORES, option("prune", False))
        return ()
    scores = {name: getattr(options, name) for name in _SCORES if getattr(options, name)}
    if options.schedule not in (None, STAR_PRESET):
        _refuse(options, _STARS_BUDGETS, option("schedule", options.schedule))
        return resolve_schedule(model, images, options.schedule, max_keep=options.max_keep, **scores)
    alias = ALIASES.get(split_revision(options.model)[0])
    layer = options.prune_layer
    if layer is None and alias is not None:
        layer = alias.prune_layer
    return resolve_star(
        model,
        images,
        keep=options.keep,
        keep_ratio=options.keep_ratio,
        max_keep=options.max_keep,
        drop_ratio=options.drop_ratio,
        prune_layer=layer,
        **scores,
    )


_SCORES = dict.fromkeys(("stage1", "stage2"))
_STARS_BUDGETS = dict.fromkeys(("keep", "keep_ratio", "prune_layer")) | {"drop_ratio": DEFAULT_DROP_RATIO}
_BUDGETS = dict.fromkeys(("keep", "keep_ratio", "max_keep", "prune_layer", "schedule"))


def _refuse(options: SpecOptions, defaults: Mapping[str, object], reason: str) -> None:
    """Refuse options that are not what they are by default."""
    for name, default in defaults.items():
        if getattr(options, name) != default:
            raise SettingsError(f"{option(name)} has no meaning with {reason}; leave one of them out")


def build(options: BuildOptions, progress: Progress | None = None) -> BuildReport:
    """Export a checkpoint to a bundle, whole or not at all.

    Args:
        options: What to build.
        progress: Told about every step; nobody by default.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged or unsupported.
        SettingsError: If options contradict the model, or the output exists.
        PlatformError: If a package, the network, memory or disk space is missing.
    """
    clear_scratch(options.output.parent, staging_name(options.output))  # may put a bundle back
    clear_scratch(options.output / ENGINES, ".")  # of engines that were being added
    if options.output.exists() and not options.overwrite:
        raise SettingsError(
            f"{options.output} exists; "
            f"give {option('overwrite')} to replace it, or another {option('output')}"
        )
    if options.output.exists():
        check_replaceable(options.output)
    require_export_extra()
    progress = progress or NoProgress()
    progress.start("read checkpoint")
    with suppress(CheckpointError):  # whoever sees the weights too says it better
        shape = read_shape(options.model, revision=options.revision, progress=progress)
        if shape.revision is not None and shape.scheme is None:
            resolve_spec(options, shape)  # a wrong option is refused before gigabytes are downloaded
    checkpoint = open_checkpoint(options.model, revision=options.revision, progress=progress)
    warn_of_unused_settings(checkpoint.folder)
    spec = resolve_spec(options, checkpoint)
    if options.engines is not None:  # before minutes of work
        check_options(options.engines, spec)
        load_builder(options.engines.backend)
    if options.calibrate is not None:
        given = (checkpoint, spec.quantization, options.calibrate, options.output)
        checkpoint = calibrated(*given, progress, overwrite=options.overwrite)
        spec = resolve_spec(replace(options, quantize=None), checkpoint)
    with staging_folder(options.output, overwrite=options.overwrite) as folder:
        steps = Steps(folder, progress)
        _write_preprocessing(folder, checkpoint, options, steps)
        hashes = _write_graphs(folder, checkpoint, spec, options.engines, steps)
        engines = {}
        if options.engines is not None:
            output = folder / engine_folder(options.engines.backend)
            output.mkdir(parents=True)
            facts = build_engines(
                folder, spec, options.engines, weights=hashes, output=output, step=steps.step
            )
            engines[facts.backend] = facts.to_dict()
        with steps.step("hash files"):
            _write_manifest(folder, checkpoint, spec, engines, hashes)
    return BuildReport(options.output, spec, tuple(steps.reports))


def add_engines(folder: Path, options: EngineOptions, progress: Progress | None = None) -> BuildReport:
    """Build engines from a bundle's own graphs and put them into the bundle.

    The bundle stays usable throughout: engines it had for this backend are replaced
    only when the new ones are complete.

    Args:
        folder: A bundle; every file is hashed first.
        options: For which backend, GPUs and sizes.
        progress: Told about every step; nobody by default.

    Raises:
        BundleError: If the bundle is damaged, or a graph is refused.
        SettingsError: If options contradict the bundle or the backend.
        PlatformError: If TensorRT, a GPU, memory or disk space is missing, or a build fails.
    """
    progress = progress or NoProgress()
    progress.start("verify bundle")
    bundle = open_bundle(folder, verify=True)
    target = folder / engine_folder(options.backend)
    with staging_folder(target, overwrite=True) as output:
        _check_room(output, {Path(file.path).stem: file.bytes for file in bundle.weights}, options)
        steps = Steps(output, progress)
        weights = {file.path: file.sha256 for file in bundle.weights}
        facts = build_engines(folder, bundle.spec, options, weights=weights, output=output, step=steps.step)
        if target.exists():  # no moment at which the manifest lists files that are not its own
            write_engines(bundle, options.backend, None)
    write_engines(bundle, options.backend, facts.to_dict())
    return BuildReport(folder, bundle.spec, tuple(steps.reports))


def require_export_extra(*packages: str) -> None:
    """Refuse to go on without packages of the ``export`` extra: ``packages``, or all that a build needs.

    Raises:
        PlatformError: If one is missing.
    """
    wanted = packages or ("torch", "transformers", "onnx", "onnxscript")
    if missing := [name for name in wanted if not _version(name)]:
        raise PlatformError(f"this needs {', '.join(missing)}; run: pip install 'star-export[export]'")


def _write_preprocessing(folder: Path, checkpoint: Checkpoint, options: BuildOptions, steps: Steps) -> None:
    """Tokenizer and parameters, tried on a question: what cannot answer is refused before any graph."""
    from star_export.preprocessing import convert
    from star_export.preprocessing.derived_forms import prompt_forms
    from star_export.preprocessing.processor import read_processor

    with steps.step("tokenizer and preprocessing"):
        processor = read_processor(checkpoint.folder)
        tokenizer = processor.tokenizer.backend_tokenizer
        end_token_ids(options.end_tokens, tokenizer)
        prompt = convert.prompt_spec(
            processor, checkpoint.model, chat_template=options.chat_template, end_tokens=options.end_tokens
        )
        prompt = convert.fit_content(
            prompt, tokenizer, max_text_tokens=options.max_text_tokens, max_images=options.max_images
        )
        parameters = {
            "image": asdict(convert.image_spec(processor, checkpoint.model)),
            "prompt": asdict(replace(prompt, forms=prompt_forms(prompt))),
        }
        convert.save_tokenizer(tokenizer, folder / layout.TOKENIZER)
        write_json(folder / layout.PREPROCESSOR, parameters)
        write_json(folder / layout.CONFIG, json.loads((checkpoint.folder / "config.json").read_bytes()))


def _write_graphs(
    folder: Path, checkpoint: Checkpoint, spec: ExportSpec, engines: EngineOptions | None, steps: Steps
) -> dict[str, str]:
    """Weights, then graphs; returns the hashes of the weights files, by their names in the bundle."""
    from star_export.graphs.export import export_graph, fake_module
    from star_export.graphs.weights import plan_weights, weights_bytes, write_weights, writing_bytes

    graphs = folder / layout.GRAPH_FOLDER
    graphs.mkdir()
    # Decode reads every parameter that prefill reads, so its module plans the shared file.
    plans = {
        WEIGHTS[graph]: plan_weights(fake_module(graph, spec), checkpoint, spec) for graph in (VISION, DECODE)
    }
    sizes = {name: weights_bytes(plan) for name, plan in plans.items()}
    memory = max(_TRACING_BYTES, *map(writing_bytes, plans.values()))
    _check_room(graphs, sizes, engines, written=sum(sizes.values()), memory=memory)
    written = {}
    for name, plan in plans.items():
        path = graphs / f"{name}.safetensors"
        with steps.step(f"{name} weights", sizes[name]):
            written[name] = write_weights(path, plan, steps.progress.advance)
    for graph in GRAPHS:
        with steps.step(f"{graph} graph"):
            export_graph(graph, spec, written[WEIGHTS[graph]], graphs / f"{graph}.onnx")
    return {file.path.relative_to(folder).as_posix(): file.sha256 for file in written.values()}


def _check_room(
    folder: Path,
    sizes: Mapping[str, int],
    engines: EngineOptions | None,
    *,
    written: int = 0,
    memory: int = 0,
) -> None:
    """Refuse what disk or memory don't hold. Engines with baked weights have those of their graph each."""
    baked = [sizes[WEIGHTS[graph]] for graph in GRAPHS] if engines and weights_of(engines) == BAKED else [0]
    check_disk(folder, written + sum(baked))
    check_memory(max(memory, BUILDER_COPIES * max(baked)))


def _write_manifest(
    folder: Path,
    checkpoint: Checkpoint,
    spec: ExportSpec,
    engines: dict[str, Any],
    hashes: dict[str, str],
) -> None:
    source: dict[str, Any] = {"model": checkpoint.source, "revision": checkpoint.revision}
    if checkpoint.revision is None:
        source["sha256"] = checkpoint.file_hashes()
    versions = {name: found for name in _TOOLS if (found := _version(name))}
    versions = {"python": platform.python_version(), **versions}
    write_manifest(folder, spec, source=source, versions=versions, engines=engines, hashes=hashes)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
