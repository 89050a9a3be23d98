"""``make bench-stall``: how long those who decode wait for a long prompt that arrives.

Some sequences are decoded all the time while prompts about other pictures arrive one after the other. What is
measured is the time from one token of the neighbours to the next, in undisturbed decode steps. Then many
requests come at once, for requests/s. Both are done with new requests prepared between two steps and beside
them, in turns, on one loaded bundle; what all turns showed is printed with its ratios.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from star_export.answer.pipeline import Pipeline
from star_export.answer.request import Request
from star_export.build import BuildOptions, build
from star_export.bundle import open_bundle
from star_export.contract import DECODE
from star_export.engines import Caches, Runtime, open_session
from star_export.engines.session import DeviceArray, Tensor, Wrapper
from star_export.serving.scheduler import Scheduler
from star_export.testing.checkpoints import make_checkpoint

ROOM = 256


class Watched(Wrapper):
    """Notes when each decode step was done."""

    moments: list[float]

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph in the session inside."""
        outputs = super().run(graph, feeds, caches)
        if graph == DECODE:
            self.moments.append(time.perf_counter())
        return outputs


@dataclass
class Seen:
    """What one side showed; in seconds, but for ``gaps``, which are in undisturbed steps."""

    steps: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def row(self) -> tuple[float, ...]:
        """Gaps at 50 %, 99 % and at most, TTFT in steps, requests/s."""
        step = statistics.median(self.steps)
        cuts = np.percentile(self.gaps, (50, 99, 100)).tolist()
        return (*cuts, statistics.median(self.ttft) / step, statistics.median(self.rates))


class Bench:
    """One loaded bundle and what is asked of it.

    Args:
        bundle: Its folder.
        args: The command's.
    """

    def __init__(self, bundle: Path, args: argparse.Namespace) -> None:
        opened = open_bundle(bundle)
        self.session = Watched(open_session(opened, Runtime(threads=args.threads, batches=True)))
        self.session.moments = []
        self.pipeline, self.args, self._pictures = Pipeline(opened, self.session), args, 0

    def request(self, new_tokens: int) -> Request:
        """A long prompt about a picture that nobody has seen."""
        self._pictures += 1
        size = self.pipeline.spec.model.vision.image_size
        noise = np.random.default_rng(self._pictures).integers(0, 256, (size, size, 3), np.uint8)
        words = "What " * (self.pipeline.spec.max_text_tokens // 2)
        return self.pipeline.request(Image.fromarray(noise), words, max_new_tokens=new_tokens)

    def turn(self, seen: Seen, *, overlap: bool) -> None:
        """Neighbours and those who arrive, then many at once."""
        args: Any = self.args
        with Scheduler(self.pipeline, slots=args.neighbours + 2, overlap=overlap) as scheduler:
            neighbours = [scheduler.submit(self.request(ROOM)) for _ in range(args.neighbours)]
            while scheduler.stats.running < args.neighbours:
                time.sleep(0.01)
            step = statistics.median(self._gaps(args.steps))
            seen.steps.append(step)
            first = len(self.session.moments)
            for _ in range(args.arrivals):
                answer = scheduler.submit(self.request(3)).answer()
                seen.ttft.append(answer.timings_ms["ttft"] / 1000)
                self._gaps(4)
            seen.gaps += [gap / step for gap in np.diff(self.session.moments[first:]).tolist()]
            for ticket in neighbours:
                ticket.cancel()
            seen.rates.append(self._rate(scheduler, args.neighbours + 2))

    def _rate(self, scheduler: Scheduler, slots: int) -> float:
        """Requests/s of many at once, not counting those that fill the slots and those that empty them."""
        asked = [self.request(self.args.answer) for _ in range(2 * slots + self.args.requests)]
        ends = []
        for ticket in [scheduler.submit(one) for one in asked]:
            ticket.answer()
            ends.append(time.perf_counter())
        return self.args.requests / (ends[-slots - 1] - ends[slots - 1])

    def _gaps(self, steps: int) -> list[float]:
        """Wait for some steps; the seconds that each took."""
        first = len(self.session.moments)
        while len(self.session.moments) <= first + steps:
            time.sleep(0.001)
        return np.diff(self.session.moments[first:]).tolist()  # type: ignore[no-any-return]


def report(sides: dict[str, Seen]) -> None:
    """Print the table, and the ratios."""
    table = Table("", "gap p50", "p99", "max", "TTFT", "requests/s")
    for name, seen in sides.items():
        table.add_row(name, *(f"{value:.2f}" for value in seen.row))
    between, beside = (seen.row for seen in sides.values())
    table.add_row("ratio", *(f"{new / old:.2f}" for new, old in zip(beside, between, strict=True)))
    Console().print(table)
    steps = ", ".join(f"{1000 * statistics.median(seen.steps):.1f}" for seen in sides.values())
    print(f"gaps and TTFT in undisturbed decode steps, of {steps} ms")


def main() -> None:
    """Build what is not there, measure in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for checkpoint and bundle")
    parser.add_argument("--preset", default="serving", help="a random checkpoint of star_export.testing")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime; all cores by default")
    parser.add_argument("--neighbours", type=int, default=3)
    parser.add_argument("--arrivals", type=int, default=4, help="a turn")
    parser.add_argument(
        "--requests",
        type=int,
        default=16,
        help="at once, a turn, besides those that fill and empty the slots",
    )
    parser.add_argument("--answer", type=int, default=128, help="tokens of each of these")
    parser.add_argument("--steps", type=int, default=20, help="undisturbed ones, a turn")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    checkpoint, bundle = args.work / args.preset, args.work / f"{args.preset}-bundle"
    if not checkpoint.exists():
        make_checkpoint(checkpoint, args.preset)
    if not bundle.exists():
        room = {"max_text_tokens": ROOM, "max_new_tokens": ROOM}
        build(BuildOptions(model=str(checkpoint), output=bundle, keep=64, **room))
    bench, sides = Bench(bundle, args), {"between steps": Seen(), "beside them": Seen()}
    for _ in range(args.turns):
        for overlap, seen in enumerate(sides.values()):
            bench.turn(seen, overlap=bool(overlap))
    report(sides)


if __name__ == "__main__":
    main()
