"""``make bench-session``: options of ONNX Runtime's sessions: load time, vision, prefill, decode, memory.

Every round starts one process per variant, so that memory and load time are its own;
variants take turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bench_peers import busy_neighbour

from star_export.answer.pipeline import Pipeline
from star_export.bundle import open_bundle
from star_export.contract import GRAPHS
from star_export.engines.onnxruntime import PREPACKED_FOR_BATCHES, OnnxRuntimeSession
from star_export.memory import resident_bytes

DEFAULT = "default"
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "for batches": {"prepacked": PREPACKED_FOR_BATCHES},
    "all prepacked": {"prepacked": GRAPHS},
    "spinning": {"spinning": True},
    "arena": {"arena": True},
}
ROUNDS, TOKENS = 5, 16


def measure(variant: str, folder: str, picture: str) -> dict[str, float]:
    """One process: load, answer once to warm up, answer again with the clock running."""
    begin = time.perf_counter()
    bundle = open_bundle(folder)
    pipeline = Pipeline(bundle, OnnxRuntimeSession(bundle, **VARIANTS[variant]))
    loaded = time.perf_counter()
    images = pipeline.prepare(picture)
    tokens = pipeline.tokenize("What is in the picture?", images)
    for _ in range(2):
        start = time.perf_counter()
        vision = pipeline.steps.encode_image(images[0])
        seen = time.perf_counter()
        state = pipeline.steps.prefill(tokens, vision, keep=pipeline.budget(None))
        prefilled = time.perf_counter()
        for _ in range(TOKENS):
            pipeline.steps.decode(state, state.best_token())
        decoded = time.perf_counter()
    anonymous = Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]
    peak = resident_bytes("peak")
    assert peak is not None
    return {
        "load s": loaded - begin,
        "vision ms": 1000 * (seen - start),
        "prefill ms": 1000 * (prefilled - seen),
        "decode ms/token": 1000 * (decoded - prefilled) / TOKENS,
        "own memory GB": 1024 * int(anonymous) / 1e9,
        "peak memory GB": peak / 1e9,
    }


def main() -> None:
    """Print the median of every measure, and its ratio to the default."""
    args = _arguments()
    if args.measure:
        print(json.dumps(measure(args.measure, args.bundle, args.picture)))
        return
    variants = [DEFAULT, *(args.variant or (name for name in VARIANTS if name != DEFAULT))]
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    with busy_neighbour() if args.neighbour else nullcontext():
        for _ in range(ROUNDS):
            for variant in variants:
                command = [sys.executable, __file__, args.bundle, args.picture, "--measure", variant]
                runs[variant].append(json.loads(subprocess.check_output(command)))
    for measure_ in runs[DEFAULT][0]:
        medians = {v: statistics.median(run[measure_] for run in runs[v]) for v in variants}
        cells = [f"{v} {m:,.2f} ({m / medians[DEFAULT]:.2f}x)" for v, m in medians.items()]
        print(f"{measure_:<18}{'   '.join(cells)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("picture")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="besides the default; repeat")
    parser.add_argument("--neighbour", action="store_true", help="beside a busy process")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
