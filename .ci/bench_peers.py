"""``make bench-peers``: bundles beside other runtimes, on this CPU.

Every side answers in a process of its own (``peer.py``), and the sides take turns in rounds, first on the
machine as it is, then beside a process that multiplies matrices on one thread. A ratio is that of one
round's two figures, and the median of these is reported. A side that cannot be made or measured is one
line with the reason.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(sys.executable).parent
PEERS = Path(".venv-peers/bin")
MEASURES = ("ttft", "decode", "peak")
STATES = {"the machine as it is": False, "beside a busy neighbour": True}

# It ends with its parent, however that ends.
_NEIGHBOUR = """
import os, numpy
parent, a = os.getppid(), numpy.ones((1024, 1024), numpy.float32)
while os.getppid() == parent: a @ a
"""

Record = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One system under test.

    Attributes:
        name: What the tables call it.
        bits: Of its weights, ``float``, ``int8`` or ``int4``: it is compared with OpenVINO at the same.
        kind: The kind that ``peer.py`` knows.
        folder: Its model.
        prepare: The command that makes the folder, without the folder, its last word.
        python: What runs it.
        given: What its kind takes besides.
    """

    name: str
    bits: str
    kind: str
    folder: Path
    prepare: Sequence[str] = ()
    python: Path = HERE / "python"
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One side's medians in one state of the machine.

    Attributes:
        name: The side.
        bits: As in :class:`Side`.
        median: Milliseconds and bytes by measure.
        ratio: Of OpenVINO's best at the same bits to this side's, by measure: above 1 is ahead of it.
    """

    name: str
    bits: str
    median: dict[str, float]
    ratio: dict[str, float]


def sides(checkpoint: Path, folder: Path) -> list[Side]:
    """All that is compared."""
    build = (str(HERE / "star-export"), "build", "--overwrite", "--model", str(checkpoint))
    star, average = ("--keep", "64"), ("--drop-ratio", "0.78", "--keep", "14")
    # Blocks as long as OpenVINO's groups at 4 bits; at 8 bits it has one scale for a whole column.
    few = {"": ()} | {kind: ("--quantize", kind) for kind in ("int8", "int4")}

    def bundle(name: str, pruning: Sequence[str], bits: str, backend: str) -> Side:
        vision = ("--quantize-vision",) if bits else ()
        runs = "star-export" if backend == "onnxruntime" else f"star-export on {backend}"
        label = ", ".join(filter(None, (runs, name, bits)))
        path = folder / "-".join(filter(None, (name.replace(" ", "-"), bits)))
        command = (*build, *pruning, *few[bits], *vision, "--output")
        return Side(
            name=label, bits=bits or "float", kind="bundle", folder=path, prepare=command,
            given={"backend": backend},
        )  # fmt: skip

    def openvino(name: str, bits: str, *options: str, **given: str) -> Side:
        task = ("--model", str(checkpoint), "--task", "image-text-to-text")
        prepare = (str(PEERS / "optimum-cli"), "export", "openvino", *task, *options)
        label, path = f"OpenVINO GenAI, {name}", folder / f"openvino-{name}"
        python = PEERS / "python"
        return Side(
            name=label, bits=bits, kind="openvino", folder=path, prepare=prepare, python=python, given=given
        )

    def other(name: str, kind: str, python: Path = HERE / "python", **given: str) -> Side:
        return Side(name=name, bits="float", kind=kind, folder=checkpoint, python=python, given=given)

    return [
        *(
            bundle(name, pruning, bits, backend)
            for backend in ("onnxruntime", "openvino")
            for name, pruning in (("keep 64", star), ("average 64", average))
            for bits in few
        ),
        openvino("fp32", "float", "--weight-format", "fp32", INFERENCE_PRECISION_HINT="f32"),
        openvino("default", "float"),
        *(openvino(bits, bits, "--weight-format", bits) for bits in ("int8", "int4")),
        other("transformers sdpa, float32", "transformers", dtype="float32"),
        other("transformers sdpa, bfloat16", "transformers", dtype="bfloat16"),
        other("transformers' ONNX exporter", "transformers-onnx"),
        other("llama.cpp", "llama.cpp", PEERS / "python", scratch=str(folder / "llama.cpp")),
    ]


def prepare(side: Side) -> Record:
    """Make a side's model where it is not there yet; nothing to record.

    Raises:
        ChildProcessError: With the reason, if that fails.
    """
    if side.folder.exists():
        return {}
    part = side.folder.with_name(side.folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    side.folder.parent.mkdir(parents=True, exist_ok=True)
    _run([*side.prepare, str(part)], limit=None)
    part.rename(side.folder)
    return {}


def measure(side: Side, request: Mapping[str, Any], limit: float) -> Record:
    """What ``peer.py`` prints of a side.

    Raises:
        ChildProcessError: With the reason, if it fails or takes longer than ``limit`` seconds.
    """
    runner = str(Path(__file__).with_name("peer.py"))
    asked = json.dumps({**request, "given": side.given})
    printed = _run([str(side.python), runner, side.kind, str(side.folder), asked], limit)
    return json.loads(printed.splitlines()[-1])  # type: ignore[no-any-return]


def _run(command: Sequence[str], limit: float | None) -> str:
    """What a command prints.

    Raises:
        ChildProcessError: If it fails; the reason is the last line of its errors.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise ChildProcessError(f"took longer than {limit:g} s") from None
    except OSError as error:
        raise ChildProcessError(str(error)) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}, no message"]
        raise ChildProcessError(lines[-1])
    return done.stdout


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """A process that multiplies matrices on one thread."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR], env=os.environ | one)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def take_turns(
    compared: Sequence[Side],
    rounds: int,
    ask: Callable[[Side], Record],
    failed: dict[str, str],
    progress: Callable[[str], None],
) -> list[dict[str, Record]]:
    """Every round's records by side; a side that fails is put into ``failed``, and asked no more."""
    found: list[dict[str, Record]] = [{} for _ in range(rounds)]
    for number, records in enumerate(found):
        for side in (side for side in compared if side.name not in failed):
            progress(f"round {number + 1} of {rounds}: {side.name}")
            try:
                records[side.name] = ask(side)
                progress(json.dumps(records[side.name]))
            except ChildProcessError as error:
                failed[side.name] = str(error)
                progress(str(error))
    return found


def rows(compared: Sequence[Side], rounds: Sequence[Mapping[str, Record]]) -> list[Row]:
    """Medians, and ratios to OpenVINO's best at the same bits in the same round."""
    made = []
    for side in compared:
        seen = [records for records in rounds if side.name in records]
        rivals = [s.name for s in compared if s.kind == "openvino" and s.bits == side.bits]
        ratios: dict[str, list[float]] = {measure: [] for measure in MEASURES}
        for records in seen:
            for measure in MEASURES if any(name in records for name in rivals) else ():
                best = min(records[name][measure] for name in rivals if name in records)
                ratios[measure].append(best / records[side.name][measure])
        if seen:
            keys = seen[0][side.name]
            median = {key: statistics.median(r[side.name][key] for r in seen) for key in keys}
            ratio = {key: statistics.median(values) for key, values in ratios.items() if values}
            made.append(Row(side.name, side.bits, median, ratio))
    return made


def table(made: Sequence[Row], failed: Mapping[str, str]) -> list[str]:
    """The rows in Markdown, with a line for each side that has none."""
    lines = [
        "| side | weights | TTFT ms | decode ms/token | peak GB | resident GB |",
        "|---|---|---|---|---|---|",
    ]
    for row in made:
        shown = [
            f"{row.median['ttft']:,.0f}",
            f"{row.median['decode']:.1f}",
            f"{row.median['peak'] / 1e9:.2f}",
        ]
        shown = [
            text + (f" ({row.ratio[key]:.2f}x)" if key in row.ratio else "")
            for text, key in zip(shown, MEASURES, strict=True)
        ]
        lines.append(
            f"| {row.name} | {row.bits} | {' | '.join(shown)} | {row.median['resident'] / 1e9:.2f} |"
        )
    return lines + [f"| {name} | not measured: {reason} | | | | |" for name, reason in failed.items()]


def ceiling_line(records: Sequence[Record]) -> str:
    """The machine's ceilings, the best of all rounds."""
    keys = records[0] if records else ()
    return ", ".join(f"{key} {max(r[key] for r in records):.1f}" for key in keys)


def main() -> None:
    """Prepare, measure, print."""
    args = _arguments()
    compared = _asked(sides(args.checkpoint, args.folder), args.side)
    checkpoint = Side(name="checkpoint", bits="float", kind="", folder=args.checkpoint, prepare=_CHECKPOINT)
    machine = Side(name="ceilings", bits="float", kind="ceilings", folder=Path())
    failed: dict[str, str] = {}
    take_turns([checkpoint, *compared], 1, prepare, failed, _progress)
    request = {name: getattr(args, name) for name in ("picture", "threads", "new_tokens", "repeats")}
    report: dict[str, Any] = {"threads": args.threads, "failed": failed, "states": {}}
    for state, busy in STATES.items():
        with busy_neighbour() if busy else nullcontext():
            found = take_turns(
                [machine, *compared],
                args.rounds,
                lambda s: measure(s, request, args.limit),
                failed,
                _progress,
            )
        made = rows(compared, found)
        report["states"][state] = {"rounds": found, "rows": [asdict(row) for row in made]}
        if not args.json:
            seen = [records["ceilings"] for records in found if "ceilings" in records]
            lines = [f"\n{state}: {ceiling_line(seen)}\n", *table(made, failed)]
            print("\n".join(lines), flush=True)
    if args.json:
        print(json.dumps(report))


def _asked(every: Sequence[Side], names: Sequence[str] | None) -> Sequence[Side]:
    """The sides of these names; exit code 2 for an unknown one."""
    known = {side.name: side for side in every}
    if unknown := set(names or ()) - set(known):
        _progress(f"unknown side {', '.join(sorted(unknown))}; sides are:\n" + "\n".join(known))
        sys.exit(2)
    return [known[name] for name in names or known]


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


_CHECKPOINT = (str(HERE / "python"), "-m", "star_export.testing.checkpoints", "bench")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where models are kept")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("build/bench/checkpoint"), help="made if missing"
    )
    parser.add_argument("--picture", default="docs/shapes.png")
    parser.add_argument(
        "--side", action="append", help="only this one, by the name in the table; repeat for more"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side in each state")
    parser.add_argument("--repeats", type=int, default=2, help="requests of a turn, after one to warm up")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, default=600, help="seconds that a turn may take")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
