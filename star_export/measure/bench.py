"""Benchmark: the pruned bundle against the unpruned one, other bundles of its model, and Hugging Face.

All sides run in one process, taking turns, so that a noisy machine disturbs
them alike. A ratio is that of one round's two times, which the machine disturbed
alike; the median of these need not be the quotient of the median times, so both
are reported with their extremes.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from star_export.answer.pipeline import open_pipeline
from star_export.baseline import unpruned_baseline
from star_export.build import require_export_extra
from star_export.bundle import open_bundle
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.hub import with_revision
from star_export.contract import group_names
from star_export.engines import Runtime
from star_export.errors import SettingsError, option
from star_export.flops import Layout, PrefillFlops, prefill_flops, pruned_layout, vision_flops
from star_export.measure.sides import (
    PRUNED,
    SIDES,
    UNPRUNED,
    Memory,
    open_side,
    peak_memory,
    side_device,
)
from star_export.measure.workload import Sample, Side, Workload
from star_export.preprocessing import load_image, render
from star_export.specs import ExportSpec, Keep

MEASURES = ("vision", "prefill", "decode", "ttft")


@dataclass(frozen=True)
class SideReport:
    """One side's times by measure, each the median over the rounds with the extremes beside it.

    Attributes:
        name: One of ``pruned``, ``unpruned``, ``hf-sdpa``, ``hf-eager``, or another bundle's.
        median_ms: Median milliseconds; decode is per token.
        range_ms: Shortest and longest milliseconds.
        speedup: Median of this side's time divided by the pruned bundle's of the same round; empty
            without that.
        speedup_range: Smallest and largest such ratio.
        device: Where it ran, ``cpu`` or ``cuda``.
        peak_memory: Peak resident bytes of a process of its own; None where the system does not tell.
        device_memory: Its bytes of GPU memory; None for a side that runs on the CPU.
    """

    name: str
    median_ms: dict[str, float]
    range_ms: dict[str, tuple[float, float]]
    speedup: dict[str, float]
    speedup_range: dict[str, tuple[float, float]]
    device: str
    peak_memory: int | None
    device_memory: int | None = None


@dataclass(frozen=True)
class BenchReport:
    """A whole benchmark.

    Attributes:
        bundle: The pruned bundle.
        tiles: Tiles of the picture.
        image_tokens: Its visual tokens before any is pruned.
        entering: Those that enter the pruned bundle's decoder.
        keep: Those that its last layers see.
        text_tokens: Text tokens of the prompt.
        repeats: Measured rounds.
        sides: One report per side.
        kv_bytes: KV cache bytes in use after prefill, by group.
        flops: Arithmetic of a prefill, pruned and full.
        vision_flops: Floating-point operations of the vision tower, the same for every side.
    """

    bundle: str
    tiles: int
    image_tokens: int
    entering: int
    keep: int
    text_tokens: int
    repeats: int
    sides: tuple[SideReport, ...]
    kv_bytes: dict[str, int]
    flops: dict[str, PrefillFlops]
    vision_flops: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of ``star-export bench``; see its help for each."""

    bundle: Path
    others: Sequence[Path] = ()
    image: Path
    prompt: str
    model: str | None = None
    baseline: Path | None = None
    keep: Keep | None = None
    sides: Sequence[str] = SIDES
    repeats: int = 5
    warmup: int = 1
    new_tokens: int = 16
    runtime: Runtime = field(default_factory=Runtime)

    @property
    def needs_checkpoint(self) -> bool:
        """Whether a side runs the source checkpoint, or is built from it."""
        return not set(self.sides) <= {PRUNED, UNPRUNED} or (UNPRUNED in self.sides and self.baseline is None)


def bench(options: BenchOptions, progress: Callable[[str], None]) -> BenchReport:
    """Measure every side on one picture and prompt.

    Args:
        options: What to measure.
        progress: Told what is being done.

    Raises:
        SettingsError: If the bundle is unpruned, a side is unknown, or another bundle is of another model.
        PlatformError: If the backend needs a GPU and there is none, or a side a package that is missing.
        BundleError, CheckpointError: If a side cannot be loaded.
        InputError: If the picture or the prompt cannot be used.
    """
    bundle = open_bundle(options.bundle)
    if not bundle.spec.schedule:
        raise SettingsError(
            f"bench compares a pruned bundle with its baseline; "
            f"this one was built with {option('prune', False)}"
        )
    if unknown := set(options.sides) - set(SIDES):
        raise SettingsError(f"unknown side {', '.join(sorted(unknown))}; sides are {', '.join(SIDES)}")
    load_image(options.image)  # refuse a bad picture here, not in a process of its own
    made_from = bundle.manifest["source"]
    source = options.model or with_revision(made_from["model"], made_from["revision"])
    checkpoint = Path()
    if options.needs_checkpoint:
        require_export_extra()
        checkpoint = open_checkpoint(source).folder
    options.runtime.check(bundle)
    others = _others(options, bundle.spec)
    with ExitStack() as stack:
        baseline = options.baseline
        if baseline is not None or UNPRUNED in options.sides:
            baseline = stack.enter_context(
                unpruned_baseline(bundle, baseline, source=source, runtime=options.runtime, progress=progress)
            )
        return _bench(options, bundle.spec, baseline or Path(), others, checkpoint, progress)


def _others(options: BenchOptions, spec: ExportSpec) -> dict[str, Path]:
    """The other bundles, each by its folder's name, or by its path where names are not distinct."""
    folders = options.others
    names = [folder.resolve().name for folder in folders]
    if len({*names, *SIDES}) < len(names) + len(SIDES):
        names = list(map(str, folders))
    if len({*names, *SIDES}) < len(names) + len(SIDES):
        raise SettingsError(
            f"{', '.join(names)} are not distinct, or are called as a side is; give absolute paths, each once"
        )
    for folder in folders:
        other = open_bundle(folder)
        options.runtime.check(other)
        if other.spec.model != spec.model:
            raise SettingsError(
                f"{folder} holds another model than {options.bundle}; build it from the same checkpoint"
            )
    return dict(zip(names, folders, strict=True))


def _bench(
    options: BenchOptions,
    spec: ExportSpec,
    baseline: Path,
    others: Mapping[str, Path],
    checkpoint: Path,
    progress: Callable[[str], None],
) -> BenchReport:
    with open_pipeline(options.bundle, options.runtime) as pipeline:
        images, text = pipeline.prepare(options.image), render(options.prompt, pipeline.prompt_spec)
        keep = pipeline.budget(options.keep, images)
        entering, last = sum(pipeline.entering(images, keep)), pipeline.last_tokens(keep, images)
        tokens = pipeline.tokenize(text, images, keep=keep)
    (image,), text_tokens = images, tokens.text_tokens
    names, folders = [*options.sides, *others], [options.bundle, *options.others]
    workload = Workload(
        bundle=options.bundle,
        baseline=baseline,
        checkpoint=checkpoint,
        picture=options.image,
        text=text,
        keep=keep,
        others=others,
        asked=options.keep,
        new_tokens=min(options.new_tokens, *(open_bundle(f).spec.max_new_tokens for f in folders)),
        runtime=options.runtime,
    )
    memory = {}
    for name in names:  # before this process holds every side itself
        progress(f"peak memory of {name}")
        memory[name] = peak_memory(name, workload)
    with ExitStack() as stack:
        sides = {}
        for name in names:
            progress(f"loading {name}")
            sides[name] = stack.enter_context(open_side(name, workload))
        samples = _measure(options, workload, sides, progress)
    layouts = {
        "pruned": pruned_layout(spec, entering=entering, keep=keep),
        "full": Layout(entering=image.packing.tokens),
    }
    sizes = {"text_tokens": text_tokens, "query_tokens": tokens.query_positions.shape[1]}
    return BenchReport(
        bundle=str(options.bundle),
        tiles=len(image.pixels),
        image_tokens=image.packing.tokens,
        entering=entering,
        keep=last,
        text_tokens=text_tokens,
        repeats=options.repeats,
        sides=tuple(_side_report(name, samples, memory[name], options.runtime) for name in names),
        kv_bytes=_kv_bytes(spec, spec.lengths(text_tokens, entering, keep))
        | {"unpruned": spec.kv_bytes(text_tokens + image.packing.tokens, spec.model.text.num_layers)},
        flops={name: prefill_flops(spec.model.text, layout, **sizes) for name, layout in layouts.items()},
        vision_flops=vision_flops(spec.model.vision, len(image.pixels)),
    )


def _measure(
    options: BenchOptions, workload: Workload, sides: Mapping[str, Side], progress: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """Samples of every side; the sides take turns within each round."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for round_ in range(options.warmup + options.repeats):
        warm = round_ >= options.warmup
        for name, side in sides.items():
            label = f"round {round_ - options.warmup + 1} of {options.repeats}" if warm else "warm-up"
            progress(f"{label}: {name}")
            sample = side.measure(workload)
            if warm:
                samples[name].append(sample)
    return samples


def _side_report(name: str, samples: dict[str, list[Sample]], memory: Memory, runtime: Runtime) -> SideReport:
    times = {m: [getattr(s, m) for s in samples[name]] for m in MEASURES}
    pruned = {m: [getattr(s, m) for s in samples[PRUNED]] for m in MEASURES if PRUNED in samples}
    ratios = {m: [a / b for a, b in zip(times[m], pruned[m], strict=True)] for m in pruned}
    return SideReport(
        name=name,
        median_ms={m: statistics.median(values) for m, values in times.items()},
        range_ms={m: (min(values), max(values)) for m, values in times.items()},
        speedup={m: statistics.median(values) for m, values in ratios.items()},
        speedup_range={m: (min(values), max(values)) for m, values in ratios.items()},
        device=side_device(name, runtime),
        peak_memory=memory.resident,
        device_memory=memory.device,
    )


def _kv_bytes(spec: ExportSpec, lengths: Sequence[int]) -> dict[str, int]:
    groups = zip(group_names(spec), spec.groups, lengths, strict=True)
    return {name: spec.kv_bytes(length, len(group.layers)) for name, group, length in groups}
