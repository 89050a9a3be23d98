"""How time and memory grow with text, tokens kept, batch and model size, beside what the shapes say.

Small random models in ONNX Runtime on a CPU. Every point is measured in processes of its own, which take
turns, so that a noisy machine disturbs all alike. Arithmetic is drawn in the measured unit: one factor for
each row of plots, that of the point which all columns share.
"""

import argparse
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from star_export.answer.pipeline import Pipeline, open_pipeline
from star_export.engines import Runtime
from star_export.errors import EXIT_COULD_NOT_RUN, EXIT_OK, PlatformError, StarExportError
from star_export.flops import Layout, prefill_flops
from star_export.memory import resident_bytes
from star_export.parameters import count_parameters, weight_bytes

ROUNDS, RUNS, NEW_TOKENS = 2, 2, 16


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is measured at once.

    Attributes:
        hidden: Width of the decoder.
        text: Words of the prompt.
        keep: Visual tokens of a sequence.
        batch: Sequences, read one after the other and decoded together.
    """

    hidden: int = 512
    text: int = 64
    keep: int = 64
    batch: int = 1


BASE = Point()
#: What varies from :data:`BASE`, with the values that it takes.
AXES = {
    "text": (16, 64, 256, 512),
    "keep": (16, 64, 128, 255),
    "batch": (1, 2, 4, 8),
    "hidden": (256, 512, 1024),
}


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Of one point; found, or as the shapes say.

    Attributes:
        prefill: Seconds of reading all sequences, or floating-point operations.
        decode: Seconds of a step of all sequences, or bytes that it reads.
        memory: Bytes that a process takes for model and caches.
    """

    prefill: float
    decode: float
    memory: float


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One point's result.

    Attributes:
        at: Where it is on each axis: text tokens, visual tokens, sequences, parameters.
        found: The median of all processes.
        counted: What the shapes say.
    """

    at: dict[str, float]
    found: Measures
    counted: Measures


def points() -> list[Point]:
    """All that are measured, each once."""
    varied = (replace(BASE, **{axis: value}) for axis, values in AXES.items() for value in values)
    return list(dict.fromkeys(varied))


def build_models(folder: Path) -> None:
    """A checkpoint and a bundle of each width: 256 patches, pruned before the decoder to any budget."""
    from star_export.build import BuildOptions, build
    from star_export.testing.checkpoints import PRESETS, make_checkpoint

    for hidden in AXES["hidden"]:
        shape = replace(PRESETS["serving"], hidden=hidden, intermediate=4 * hidden, heads=hidden // 64)
        checkpoint = make_checkpoint(folder / f"checkpoint-{hidden}", shape)
        build(
            BuildOptions(
                model=str(checkpoint),
                output=folder / str(hidden),
                schedule=f"{max(AXES['keep'])}@0",
                max_text_tokens=2 * max(AXES["text"]),
                max_new_tokens=NEW_TOKENS,
                overwrite=True,
            )
        )


def measure(folder: Path, point: Point, picture: Path) -> Finding:
    """One point in this process, with the bundles that :func:`build_models` made in ``folder``."""
    before = resident_bytes("now") or 0
    with open_pipeline(folder / str(point.hidden), Runtime()) as pipeline:
        images = pipeline.prepare(picture)
        words = " ".join(["what"] * point.text)
        tokens = pipeline.tokenize(words, images, keep=(point.keep,))
        length = tokens.input_ids.shape[1]
        capacities = pipeline.session.capacities((length + NEW_TOKENS,))
        caches = pipeline.session.allocate_caches(point.batch, capacities)
        [vision] = pipeline.steps.encode_images(images, (point.keep,))

        def read() -> None:
            for row in range(point.batch):
                own = caches.rows(row, row + 1)
                pipeline.steps.prefill(tokens, vision, keep=(point.keep,), caches=own).output.numpy()

        ids = np.zeros(point.batch, np.int64)
        lengths = np.full((1, point.batch), length + NEW_TOKENS // 2)
        prefill = _seconds(read, RUNS)
        decode = _seconds(lambda: pipeline.steps.decode_batch(caches, ids, lengths).numpy(), NEW_TOKENS)
        text = tokens.text_tokens
        parameters = count_parameters(pipeline.spec.model).total
        return Finding(
            at={"text": text, "keep": point.keep, "batch": point.batch, "hidden": parameters},
            found=Measures(prefill=prefill, decode=decode, memory=(resident_bytes("peak") or 0) - before),
            counted=count(pipeline, point, text),
        )


def count(pipeline: Pipeline, point: Point, text_tokens: int) -> Measures:
    """What the shapes say of a point with so many text tokens."""
    spec, weights = pipeline.spec, weight_bytes(pipeline.spec)
    layout = Layout(entering=point.keep)
    flops = prefill_flops(spec.model.text, layout, text_tokens=text_tokens, query_tokens=0).exact
    length = point.keep + text_tokens + NEW_TOKENS // 2
    return Measures(
        prefill=point.batch * flops,
        decode=weights.read + point.batch * spec.sequence_bytes((length,)),
        memory=weights.stored + point.batch * spec.sequence_bytes((length + NEW_TOKENS // 2,)),
    )


def _seconds(run: Callable[[], object], runs: int) -> float:
    """Median of a few runs, after one that warms up."""
    spent = []
    for _ in range(1 + runs):
        begin = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent[1:])


def measure_all(folder: Path, picture: Path, rounds: int = ROUNDS) -> dict[Point, Finding]:
    """Every point in ``rounds`` processes; the points take turns."""
    runs: dict[Point, list[Finding]] = {point: [] for point in points()}
    for number in range(rounds):
        for point, found in runs.items():
            print(f"round {number + 1} of {rounds}: {point}", file=sys.stderr)
            found.append(_apart(folder, point, picture))
    return {point: _median(found) for point, found in runs.items()}


def _apart(folder: Path, point: Point, picture: Path) -> Finding:
    request = json.dumps(asdict(point))
    module = "star_export.measure.growth"  # whose name is another where it is the program
    command = [sys.executable, "-m", module, str(folder), "--picture", str(picture), "--point", request]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PlatformError(f"the process that measures {point} ended with {done.returncode}: {reason}")
    told = json.loads(done.stdout)
    return Finding(at=told["at"], found=Measures(**told["found"]), counted=Measures(**told["counted"]))


def _median(findings: Sequence[Finding]) -> Finding:
    columns = [asdict(finding.found) for finding in findings]
    found = {name: statistics.median(column[name] for column in columns) for name in columns[0]}
    return replace(findings[0], found=Measures(**found))


def lines(findings: dict[Point, Finding], measure: str, axis: str) -> Iterator[tuple[float, float, float]]:
    """``(place, found, counted)`` of each point on an axis, the latter in the measured unit.

    Memory is counted in its own unit already.
    """
    base = findings[BASE]
    factor = 1.0 if measure == "memory" else getattr(base.found, measure) / getattr(base.counted, measure)
    for value in AXES[axis]:
        finding = findings[replace(BASE, **{axis: value})]
        yield finding.at[axis], getattr(finding.found, measure), factor * getattr(finding.counted, measure)


_COLUMNS = {
    "text": "text tokens", "keep": "visual tokens kept", "batch": "sequences", "hidden": "million parameters",
}  # fmt: skip
_ROWS = {"prefill": ("prefill, ms", 1e3), "decode": ("decode step, ms", 1e3), "memory": ("memory, MB", 1e-6)}


def draw(findings: dict[Point, Finding]) -> bytes:
    """A PNG: a row for each measure, a column for each axis; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), dpi=80, layout="constrained")
    grid = figure.subplots(len(_ROWS), len(_COLUMNS), sharey="row", sharex="col")
    for row, (measure, (label, unit)) in zip(grid, _ROWS.items(), strict=True):
        row[0].set_ylabel(label)
        for axes, axis in zip(row, _COLUMNS, strict=True):
            places, found, counted = zip(*lines(findings, measure, axis), strict=True)
            scale = 1e-6 if axis == "hidden" else 1
            at = [scale * place for place in places]
            axes.plot(at, [unit * value for value in found], "o-", label="measured")
            axes.plot(at, [unit * value for value in counted], "k--", linewidth=1, label="from the shapes")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.grid(alpha=0.3)
    for axes, name in zip(grid[-1], _COLUMNS.values(), strict=True):
        axes.set_xlabel(name)
    grid[0][0].legend(fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Measure growth on this machine's CPU and draw it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where the models are built")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="the plot, a PNG")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.point:
            point = Point(**json.loads(options.point))
            print(json.dumps(asdict(measure(options.folder, point, options.picture))))
            return EXIT_OK
        if importlib.util.find_spec("matplotlib") is None:
            raise PlatformError("the plot needs matplotlib; run: pip install 'star-export[eval]'")
        build_models(options.folder)
        findings = measure_all(options.folder, options.picture)
    except StarExportError as error:
        print(error, file=sys.stderr)
        return EXIT_COULD_NOT_RUN
    options.output.write_bytes(draw(findings))
    print(json.dumps([asdict(point) | asdict(finding) for point, finding in findings.items()]))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
