"""``make gpu``: everything this machine's GPU can be asked, as one Markdown report.

Every step is a command of its own, so that one that fails or dies leaves its exact
reason in the report and the others run on. Nothing here needs a GPU to be listed:
on a machine without one the report says so, step by step.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_export.engines import BACKENDS
from star_export.engines.tensorrt.bindings import PRODUCTS, TENSORRT_RTX, load_bindings
from star_export.engines.tensorrt.cuda import require_device
from star_export.engines.tensorrt.facts import engine_path
from star_export.errors import PlatformError
from star_export.files import atomic_open

ROOT = Path(__file__).parents[1]

#: Longest a step may take, in seconds.
STEP_SECONDS = 1800

#: Room for text and answer of the smaller caches; tokens to generate with which a request takes each size.
SMALL, NEW_TOKENS = 128, {"128": 16, "all": 200}

#: Types of weights that are built and measured beside whole ones.
QUANTIZED = ("int4", "int8")

_CLI = (sys.executable, "-m", "star_export.cli")


@dataclass(frozen=True)
class Step:
    """One command that was run.

    Attributes:
        title: What it is for.
        command: Its words, as a user would type them.
        seconds: How long it took.
        code: Its exit code; None when it ran out of time.
        output: What it printed: JSON when it was asked for it.
        reason: Why it failed, in one line; empty when it did not.
    """

    title: str
    command: str
    seconds: float
    code: int | None
    output: str
    reason: str

    @property
    def data(self) -> Any:
        """Its output as JSON, or None when it is not."""
        try:
            return json.loads(self.output)
        except ValueError:
            return None


def run_step(title: str, *words: object, cli: bool = True) -> Step:
    """Run one command, of ours or of ``python``, and keep what it said."""
    arguments = [*(_CLI if cli else (sys.executable,)), *map(str, words)]
    shown = " ".join(("star-export" if cli else "python", *map(str, words)))
    print(f"{title}: {shown}", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=STEP_SECONDS, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return Step(title, shown, STEP_SECONDS, None, "", f"still running after {STEP_SECONDS} s")
    lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
    reason = "" if done.returncode == 0 else f"exit {done.returncode}: {lines[-1].strip()}"
    return Step(title, shown, time.perf_counter() - begin, done.returncode, done.stdout, reason)


def run_steps(folder: Path, checkpoint: Path) -> list[Step]:
    """Every step, in order: kernels first, then a bundle on each backend.

    Args:
        folder: Where bundles may be written.
        checkpoint: A model in Hugging Face layout; a small random one is made when it is missing.
    """
    steps = [
        run_step("GPU tests", "-m", "pytest", "-m", "gpu", "-q", cli=False),
        run_step("TopKGather", "-m", "star_export.measure.kernel_bench", "--json", cli=False),
    ]
    if not checkpoint.exists():
        steps.append(
            run_step("checkpoint", "-m", "star_export.testing.checkpoints", "bench", checkpoint, cli=False)
        )
    bundle, baseline, mini = folder / "bundle", folder / "baseline", folder / "mini"
    common = ("--dtype", "float16", "--overwrite", "--json")
    steps += [
        run_step("bundle", "build", "--model", checkpoint, *common, "--keep", 64, "-o", bundle),
        run_step("baseline", "build", "--model", checkpoint, *common, "--no-prune", "-o", baseline),
        run_step("mini", "build", "--model", "models/mini", *common, "--keep", 64, "-o", mini),
    ]
    for kind in QUANTIZED:
        options = ("--model", checkpoint, *common, "--keep", 64, "--quantize", kind, "-o", folder / kind)
        steps.append(run_step(kind, "build", *options))
    for backend in (name for name, entry in BACKENDS.items() if entry.device == "cuda"):
        steps += _backend_steps(backend, bundle, baseline, mini)
    return steps


def _backend_steps(backend: str, bundle: Path, baseline: Path, mini: Path) -> list[Step]:
    """Build, check and measure on one backend; a failed build leaves the rest out."""
    steps = []
    if BACKENDS[backend].builds_engines:
        for name, folder in (("engines", bundle), ("baseline engines", baseline), ("mini engines", mini)):
            options = ("--from-bundle", folder, "--backend", backend, *_target(backend))
            steps.append(run_step(f"{backend} {name}", "build", *options, "--json"))
        if any(step.code for step in steps):
            return steps
    if backend == TENSORRT_RTX:  # its own word on GPUs that it has no target for, such as sm90
        engine = bundle / engine_path(backend, "decode")
        steps.append(run_step(f"{backend} validity", __file__, "--validity", engine, cli=False))
    picture = ROOT / "docs" / "shapes.png"
    gate = ("--keep", 64, "--keep", 29, "--limit", 350, "--min-retention", 0.97, "--json")
    sides = ("--side", "pruned", "--side", "unpruned", "--baseline", baseline)
    return [
        *steps,
        run_step(f"{backend} check", "check", bundle, "--backend", backend, "--json"),
        run_step(
            f"{backend} bench", "bench", bundle, "--image", picture, "--backend", backend, *sides, "--json"
        ),
        run_step(f"{backend} accuracy", "eval", mini, "--backend", backend, *gate),
        *_baked_steps(backend, bundle, picture),
        *(
            step
            for kind in ("bundle", *QUANTIZED)
            for step in _sized_steps(backend, bundle.parent / kind, picture)
        ),
    ]


def _baked_steps(backend: str, bundle: Path, picture: Path) -> list[Step]:
    """The same engines with constants for weights: whether TensorRT makes better kernels of them."""
    if not BACKENDS[backend].builds_engines:
        return []
    options = ("--from-bundle", bundle, "--backend", backend, *_target(backend), "--weights", "baked")
    built = run_step(f"{backend} engines, weights baked", "build", *options, "--json")
    if built.code:
        return [built]
    options = ("--image", picture, "--backend", backend, "--side", "pruned", "--json")
    return [built, run_step(f"{backend} bench, weights baked", "bench", bundle, *options)]


def _sized_steps(backend: str, bundle: Path, picture: Path) -> list[Step]:
    """Engines for caches of two sizes: built, checked, and measured with a request that takes each."""
    if not BACKENDS[backend].builds_engines:
        return []
    name, options = (
        f"{backend} {bundle.name}",
        ("--backend", backend, *_target(backend), "--capacities", SMALL),
    )
    built = run_step(f"{name}, engines of two sizes", "build", "--from-bundle", bundle, *options, "--json")
    if built.code:
        return [built]
    options = ("--image", picture, "--backend", backend, "--side", "pruned", "--json")
    return [
        built,
        run_step(f"{name}, check of both sizes", "check", bundle, "--backend", backend, "--json"),
        *(
            run_step(f"{name}, bench, room for {room}", "bench", bundle, *options, "--max-new-tokens", tokens)
            for room, tokens in NEW_TOKENS.items()
        ),
    ]


def _target(backend: str) -> tuple[str, ...]:
    """TensorRT-RTX builds for named GPUs: for the one here, if it can."""
    try:
        target = "sm{}{}".format(*require_device().capability)
    except PlatformError:
        return ()
    return ("--target", target) if target in PRODUCTS[backend].targets else ()


def render(steps: Sequence[Step], doctor: Any) -> str:
    """The report in Markdown."""
    lines = ["# What this machine's GPU does", "", f"{time.strftime('%Y-%m-%d')}, {platform.platform()}", ""]
    lines += ["| part | works | found |", "|---|---|---|"]
    lines += [f"| {p['name']} | {'yes' if p['works'] else 'no'} | {p['found']} |" for p in doctor["parts"]]
    lines += ["", "| step | result | seconds |", "|---|---|---|"]
    lines += [f"| {s.title} | {s.reason or 'done'} | {s.seconds:.0f} |".replace("\n", " ") for s in steps]
    for step in steps:
        lines += ["", f"## {step.title}", "", f"`{step.command}`", "", *_details(step)]
    return "\n".join(lines) + "\n"


def _details(step: Step) -> list[str]:
    """What a reader wants of one step."""
    if step.reason:
        lines = step.output.strip().splitlines()[-15:]
        return [step.reason, *(["", "```", *lines, "```"] if lines else [])]
    data = step.data
    if data is None:
        return ["```", *step.output.strip().splitlines()[-25:], "```"]
    if "sides" in data:
        return _bench_table(data)
    if "cases" in data:
        return _check_table(data)
    if "scores" in data:
        return [f"- {n}: {s['accuracy']['value']:.4f} right" for n, s in data["scores"].items()]
    if "steps" in data:
        return [f"- {s['step']}: {s['seconds']:.1f} s, {s['bytes'] / 1e6:.1f} MB" for s in data["steps"]]
    return ["```json", json.dumps(data, indent=1), "```"]


def _bench_table(data: Any) -> list[str]:
    lines = [
        "| side | vision ms | prefill ms | decode ms | TTFT ms | GPU memory |",
        "|---|---|---|---|---|---|",
    ]
    for side in data["sides"]:
        cells = [
            f"{median:.2f} ({side['speedup'].get(measure, 1):.2f}x)"
            for measure, median in side["median_ms"].items()
        ]
        memory = side["device_memory"]
        cells.append("" if memory is None else f"{memory / 1e6:.0f} MB")
        lines.append(f"| {side['name']} | {' | '.join(cells)} |")
    return [*lines, "", "In brackets: that side's time divided by star's."]


def _check_table(data: Any) -> list[str]:
    lines = [f"{'pass' if data['passed'] else 'FAIL'} against {data['reference']}", ""]
    lines += ["| stage | worst error | tolerance | result |", "|---|---|---|---|"]
    worst: dict[str, Any] = {}
    for stage in (stage for case in data["cases"] for stage in case["stages"]):
        before = worst.get(stage["stage"])
        if before is None or stage["error"] > before["error"]:
            worst[stage["stage"]] = stage
    return lines + [
        f"| {n} | {s['error']:.2g} | {s['tolerance']:.2g} | {s['status']} |" for n, s in worst.items()
    ]


def _print_validity(engine: Path) -> int:
    bindings = load_bindings(TENSORRT_RTX)
    validity, flags = bindings.trt.Runtime(bindings.logger).get_engine_validity(engine.read_bytes())
    known = bindings.trt.EngineInvalidityDiagnostics.__members__.items()
    print(validity.name, *(name for name, flag in known if int(flag) & flags))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Write the report; 0 if every step worked, 1 if one did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where bundles and the report are written")
    parser.add_argument(
        "--checkpoint", type=Path, help="a LLaVA checkpoint; by default a random one of 0.5 B"
    )
    parser.add_argument("--validity", action="store_true", help="only ask TensorRT-RTX about one engine file")
    options = parser.parse_args(arguments)
    if options.validity:
        return _print_validity(options.folder)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    doctor = run_step("doctor", "doctor", "--json").data
    steps = run_steps(folder, (options.checkpoint or folder / "checkpoint").resolve())
    with atomic_open(folder / "report.md") as file:
        file.write(render(steps, doctor).encode())
    print(f"{folder / 'report.md'}: {sum(not s.reason for s in steps)} of {len(steps)} steps worked")
    return int(any(step.reason for step in steps))


if __name__ == "__main__":
    raise SystemExit(main())
