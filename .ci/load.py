"""``make load``: many clients against a real tritonserver; every answer is checked.

Three servers, one after the other, with the same work: in-flight batching, one request at a time, and
the unpruned bundle with the same memory for KV caches. One picture is a photo of 12 megapixels. One
request in ten is garbage or is dropped by its client. Exit code 1 if an answer is wrong, a request is
lost, or memory grows.
"""

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.sampling import Sampling
from star_export.build import BuildOptions, build
from star_export.errors import InputError
from star_export.evaluation.shapes.scenes import draw, random_scene, rng_of
from star_export.serving.triton.client import collect, stream
from star_export.serving.triton.tritonserver import wait_until_ready
from star_export.testing.checkpoints import make_checkpoint

PORT = 18800
KV_CACHE_MIB = "64"
KEEPS, LENGTHS = (13, 26, 51), (32, 64, 128, 256)
PROMPTS = ("What is this?", "Describe the picture in detail.", "Where is the red circle?", "Why?")
#: Memory may grow by this share after this share of the time.
GROWTH, WARM = 0.05, 1 / 3


@dataclass(frozen=True)
class Case:
    """A request and its right answer."""

    image: Path
    prompt: str
    inputs: dict[str, Any]
    text: str
    token_ids: tuple[int, ...]


@dataclass
class Tally:
    """What the clients saw."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    outcomes: Counter[str] = field(default_factory=Counter)
    ttft: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.outcomes["right"] / self.seconds


#: What a client does with a case: how it ended, and seconds to the first piece of an answer.
Ask = Callable[[Case], tuple[str, float | None]]


@dataclass(frozen=True)
class Door:
    """How clients reach a server: for an answer, for one that they leave, and with nonsense."""

    ask: Ask
    drop: Ask
    garbage: Ask


@dataclass(frozen=True)
class Most:
    """When clients end."""

    seconds: float = math.inf
    requests: float = math.inf
    began: float = field(default_factory=time.monotonic)

    def share(self, tally: Tally) -> float:
        """How much of it is done."""
        done = sum(tally.outcomes.values())
        return max(done / self.requests, (time.monotonic() - self.began) / self.seconds)


def make_cases(pipeline: Pipeline, folder: Path, count: int) -> list[Case]:
    """Requests with the answers that the pipeline gives, one at a time."""
    chance, cases = random.Random(0), []
    slots = (int(KV_CACHE_MIB) << 20) // pipeline.spec.slot_bytes
    title = f"{pipeline.bundle.folder.name}: {slots} of its longest requests fit; its own answers"
    for number in track(range(count), title, console=Console(stderr=True)):
        image = folder / (f"{number % 12}.png" if number else "photo.jpg")
        if not image.exists():
            _draw(image, number)
        prompt = chance.choice(PROMPTS)
        length = chance.choice(LENGTHS)
        sampling = {"temperature": 0.7, "seed": number} if number % 4 == 0 else {}
        budget = {"keep": chance.choice(KEEPS)} if pipeline.spec.schedule else {}
        result = pipeline.generate(
            image, prompt, max_new_tokens=length, sampling=Sampling(**sampling), **budget
        ).result()
        inputs = {"max_new_tokens": length, **sampling, **budget}
        cases.append(Case(image, prompt, inputs, result.text, result.token_ids))
    return cases


def _draw(image: Path, number: int) -> None:
    """A drawn scene; the photo has 12 megapixels and 5 MB, as one of a phone."""
    if image.suffix == ".jpg":
        noise = np.random.default_rng(number).integers(0, 256, (3000, 4000), np.uint8)
        Image.fromarray(noise).save(image, quality=50)
    else:
        Image.fromarray(draw(random_scene(rng_of("validation", 7, number)))).save(image)


@contextmanager
def server(bundle: Path, repository: Path, *options: str) -> Iterator[subprocess.Popen[Any]]:
    """A server on ``bundle``, started as users start it."""
    program = Path(os.environ.get("STAR_EXPORT_TRITON", ".venv-triton")) / "bin/star-export"
    command = [program, "triton", bundle, "-o", repository, "--overwrite", "--serve", *options, "--"]
    ports = [f"--http-port={PORT}", f"--grpc-port={PORT + 1}", f"--metrics-port={PORT + 2}"]
    with repository.with_suffix(".log").open("w") as log:
        process = subprocess.Popen([*map(str, command), *ports], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_ready(process, f"localhost:{PORT}")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def run(
    process: subprocess.Popen[Any], cases: list[Case], door: Door, *, clients: int, most: Most, title: str
) -> Tally:
    """Let ``clients`` ask until there were so many requests, or for so long."""
    tally, began = Tally(), time.monotonic()
    threads = [threading.Thread(target=_client, args=(n, cases, door, most, tally)) for n in range(clients)]
    for thread in threads:
        thread.start()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=1.0)
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            tally.memory.append(_resident(process.pid))
            progress.update(task, completed=min(1.0, most.share(tally)))
    tally.seconds = time.monotonic() - began
    return tally


def _client(number: int, cases: list[Case], door: Door, most: Most, tally: Tally) -> None:
    chance, photo = random.Random(number), cases[:1]
    while most.share(tally) < 1:
        # All begin with the photo, so that memory is at its peak before it is compared.
        case, kind = photo.pop() if photo else chance.choice(cases), chance.random()
        ask = door.drop if kind < 0.05 else door.garbage if kind > 0.95 else door.ask
        try:
            outcome, ttft = ask(case)
        except Exception as error:  # whatever it is, the request was lost
            outcome, ttft = f"lost: {error}", None
        with tally.lock:
            tally.outcomes[outcome] += 1
            if ttft is not None:
                tally.ttft.append(ttft)


def _ask(case: Case) -> tuple[str, float | None]:
    start, first, responses = time.perf_counter(), None, []
    for response in stream(f"localhost:{PORT + 1}", case.image, case.prompt, **case.inputs):
        first = first or time.perf_counter() - start
        responses.append(response)
    whole = collect(iter(responses))
    right = (whole["text"], tuple(whole["token_ids"])) == (case.text, case.token_ids)
    return ("right" if right else "wrong"), first


def _drop(case: Case) -> tuple[str, None]:
    """Close the connection after the first piece."""
    responses = stream(f"localhost:{PORT + 1}", case.image, case.prompt, **case.inputs)
    next(responses)
    responses.close()  # type: ignore[attr-defined]
    return "dropped", None


def _garbage(case: Case) -> tuple[str, None]:
    try:
        list(stream(f"localhost:{PORT + 1}", Path(__file__), case.prompt))
    except InputError as error:
        return ("refused" if "must be an encoded picture" in str(error) else f"lost: {error}"), None
    return "wrong", None


DOOR = Door(_ask, _drop, _garbage)


def _resident(pid: int) -> int:
    """Resident bytes of a process and of all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/statm").read_text().split()
    return int(status[1]) * os.sysconf("SC_PAGE_SIZE") + sum(_resident(int(child)) for child in children)


def main() -> int:
    """Run all three servers; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for checkpoint, bundles, pictures and logs")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=3.0, help="the other two take a third each")
    parser.add_argument("--cases", type=int, default=48)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    star, full = (build_bundle(args.work, prune=prune) for prune in (True, False))
    cases = {bundle: make_cases(load(bundle), args.work, args.cases) for bundle in (star, full)}
    tallies, seconds = {}, 60 * args.minutes
    slots = "--max-slots", str(args.clients), "--kv-cache", KV_CACHE_MIB
    for title, bundle, options, share in (
        ("batched", star, slots, 1.0),
        ("one at a time", star, ("--max-slots", "1"), 1 / 3),
        ("batched, unpruned", full, slots, 1 / 3),
    ):
        with server(bundle, args.work / "repository", *options) as process:
            tallies[title] = run(
                process,
                cases[bundle],
                DOOR,
                clients=args.clients,
                most=Most(seconds=share * seconds),
                title=title,
            )
    failed = report(tallies, growth=GROWTH, warm=WARM)
    batched, single, full = tallies.values()
    print(f"batched / one at a time: {batched.rate / single.rate:.2f}x requests/s")
    print(f"pruned / unpruned, same memory: {batched.rate / full.rate:.2f}x requests/s")
    return failed


def build_bundle(work: Path, *, prune: bool) -> Path:
    """The bundle of 30 M parameters, built where it is not there."""
    checkpoint, folder = work / "checkpoint", work / ("star" if prune else "full")
    if not checkpoint.exists():
        make_checkpoint(checkpoint, "serving")
    if not folder.exists():
        room = {"max_text_tokens": 64, "max_new_tokens": max(LENGTHS)}
        budget = {"keep": max(KEEPS)} if prune else {}
        build(BuildOptions(model=str(checkpoint), output=folder, prune=prune, **room, **budget))
    return folder


def report(tallies: dict[str, Tally], *, growth: float, warm: float) -> int:
    """Print the table; the exit code."""
    table = Table("", "requests/s", "TTFT p50 ms", "p90", "p99", "memory")
    faults: list[str] = []
    for title, tally in tallies.items():
        cuts = [1000 * cut for cut in statistics.quantiles(tally.ttft, n=100)]
        early = max(tally.memory[: max(1, int(warm * len(tally.memory)))])
        grown = max(tally.memory) / early - 1
        lost = [outcome for outcome in tally.outcomes if outcome.startswith(("lost", "wrong"))]
        faults += [f"{title}: {outcome}" for outcome in lost]
        if grown > growth:
            faults.append(f"{title}: memory grew by {grown:.1%}, at most {growth:.0%}")
        table.add_row(
            title,
            f"{tally.rate:.2f}",
            *(f"{cuts[p - 1]:.0f}" for p in (50, 90, 99)),
            f"{grown:+.1%} of {early / 1e6:.0f} MB",
        )
        print(f"{title}: {json.dumps(tally.outcomes)}")
    Console().print(table)
    print(
        "\n".join(f"FAILED: {fault}" for fault in faults)
        or "every answer right, no request lost, memory flat"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
