"""How many requests run at once in 1 GiB of KV caches, and how many are answered in a minute.

Caches of the bundle's full capacity, as engines have them, against caches as long as the requests need.
The two take turns in one process, with the same requests. Usage: python .ci/bench_slots.py BUNDLE PICTURE
"""

import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from star_export import contract as names
from star_export.answer.pipeline import Pipeline
from star_export.bundle import Bundle, open_bundle
from star_export.contract import DECODE
from star_export.engines import Runtime, open_session
from star_export.engines.session import Caches, DeviceArray, Session, Tensor, Wrapper
from star_export.serving.scheduler import Scheduler

KV_BYTES, KEEP, NEW_TOKENS = 1 << 30, 64, 64
ROUNDS, REQUESTS = 3, 26


class Counting(Wrapper):
    """Counts the sequences that are decoded at once."""

    def __init__(self, session: Session, *, resizable: bool) -> None:
        super().__init__(session)
        self.resizable, self.at_once = resizable, 0

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph in the session inside."""
        if graph == DECODE:
            self.at_once = max(self.at_once, int((feeds[names.POSITION_IDS] > 0).sum()))  # type: ignore[operator]
        return super().run(graph, feeds, caches)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One side, once: sequences decoded at once, at most, and answers in a minute."""

    at_once: int
    per_minute: float


def measure(bundle: Bundle, session: Counting, picture: str) -> Sample:
    """Answer all requests, which are there at once."""
    pipeline = Pipeline(bundle, session)
    asked = pipeline.request(picture, "What is in the picture?", keep=KEEP, max_new_tokens=NEW_TOKENS)
    with Scheduler(pipeline, slots=REQUESTS, kv_bytes=KV_BYTES) as scheduler:
        start = time.perf_counter()
        tickets = [scheduler.submit(asked) for _ in range(REQUESTS)]
        for ticket in tickets:
            ticket.answer()
        seconds = time.perf_counter() - start
    return Sample(at_once=session.at_once, per_minute=60 * REQUESTS / seconds)


def main(folder: str, picture: str) -> None:
    """Print both sides, and the median ratio of a round."""
    bundle = open_bundle(folder)
    inside = open_session(bundle, Runtime(batches=True))
    full, fitting = (Counting(inside, resizable=resizable) for resizable in (False, True))
    rounds = []
    for number in range(ROUNDS):
        before, now = (measure(bundle, session, picture) for session in (full, fitting))
        rounds.append(now.per_minute / before.per_minute)
        print(
            f"round {number + 1}, full capacity: {before.at_once} at once, {before.per_minute:.1f} a minute"
        )
        print(f"round {number + 1}, as needed: {now.at_once} at once, {now.per_minute:.1f} a minute")
    print(f"answers a minute: {statistics.median(rounds):.2f}x ({min(rounds):.2f} to {max(rounds):.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
