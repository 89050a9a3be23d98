"""Plant small faults in the logic, one at a time, and see whether the tests of the module notice.

cosmic-ray makes the faults; each runs the module's own tests on an installed copy of the package.
A run samples until its time is over; `--seconds 0` takes every mutant. Survivors that are equivalent
or harmless stand in `.ci/mutants.toml` with the reason; the others are printed.

usage: mutants.py [--seconds N] [--seed N] [MODULE ...]
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

T, R = TypeVar("T"), TypeVar("R")

WORK = Path("build/mutants")
FOLDERS = {"cli": "star_export/cli", "engines": "star_export/engines", "graphs": "star_export/graphs"}
SCORE = 0.85


#: `except (A, B)` is more than it can change.
SKIPPED = ("core/ExceptionReplacer",)


@dataclass(frozen=True)
class Place:
    """Where a fault of some kind can be planted."""

    module: str
    operator: str
    occurrence: int

    def mutated(self) -> str:
        """The module's source with the fault."""
        operator = get_operator(self.operator)()
        return str(mutate_code(Path(self.module).read_text(), operator, self.occurrence))

    def name(self, mutated: str) -> str:
        """What `.ci/mutants.toml` knows it by: the lines before and after, since numbers would not last."""
        pairs = zip(Path(self.module).read_text().splitlines(), mutated.splitlines(), strict=False)
        before, after = next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("", ""))
        return f"{self.module}: {before} -> {after}"


def places(module: str) -> Iterator[Place]:
    """Every fault that can be planted in a module."""
    tree = get_ast(Path(module).read_text())
    for name in operator_names():
        operator_class = get_operator(name)
        if operator_class.arguments() or name in SKIPPED:
            continue  # arguments: names to put in
        operator = operator_class()
        count = sum(1 for node in ast_nodes(tree) for _ in operator.mutation_positions(node))
        yield from (Place(module, name, occurrence) for occurrence in range(count))


class Worker:
    """An installed copy of the package that holds one fault at a time."""

    def __init__(self, number: int, suites: dict[str, list[str]], seconds: dict[str, float]) -> None:
        self.site, self.suites, self.seconds = (WORK / f"site-{number}").absolute(), suites, seconds
        shutil.copytree(WORK / "site", self.site)

    def survives(self, module: str, mutated: str) -> bool:
        """Whether a module's tests pass all the same; a run that hangs notices."""
        top, _, rest = module.partition("/")
        path = self.site / FOLDERS.get(top, top) / rest
        original = path.read_text()
        path.write_text(mutated)
        try:
            return self.passes(module)
        finally:
            path.write_text(original)

    def passes(self, module: str) -> bool:
        """Whether the tests of a module pass on the copy."""
        root = Path.cwd()
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["-c", str(root / "pyproject.toml"), "-o", f"pythonpath={self.site} ."]
        command += [str(root / file) for file in self.suites[module]]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "STAR_EXPORT_TEST_BUNDLES": str((WORK / "bundles").absolute()),
        }
        try:
            # In the copy's folder, so that it comes before the working tree in the tests' own processes too.
            done = subprocess.run(
                command, cwd=self.site, env=environment, capture_output=True, timeout=self.seconds[module]
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def prepare(self, module: str) -> str:
        """Build what the tests need and see how long they may take; what is wrong with them, or nothing."""
        begin = time.monotonic()
        self.seconds[module] = 900
        if not self.passes(module):
            return f"the tests of {module} fail without any fault"
        self.seconds[module] = 20 + 3 * (time.monotonic() - begin)
        seen = not self.survives(module, "raise SystemExit('a fault')")
        return "" if seen else f"the tests of {module} do not run on the copy"


def install() -> None:
    """An installed copy of the package, and the bundles that the tests share."""
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "bundles").mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(WORK / "site"), "."]
    subprocess.run(command, check=True)


def main() -> int:
    """Run a sample, print survivors and the score; 1 when it is below the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    settings = tomllib.loads(Path(".ci/mutants.toml").read_text())
    suites: dict[str, list[str]] = settings["tests"]
    chosen = {module: suites[module] for module in options.modules or suites}
    known: dict[str, str] = {entry["mutant"]: entry["why"] for entry in settings.get("survivor", ())}
    install()
    seconds: dict[str, float] = {}
    workers = [Worker(number, chosen, seconds) for number in range(options.workers)]
    wrong = [fault for fault in _together(workers, chosen, Worker.prepare) if fault]
    if wrong:
        print(*wrong, sep="\n")
        return 2
    every = [place for module in chosen for place in places(module)]
    random.Random(options.seed).shuffle(every)
    results = _run(workers, every, options.seconds)
    return _report(results, known, total=len(every))


def _together(workers: list[Worker], items: Iterable[T], work: Callable[[Worker, T], R]) -> list[R]:
    """What the workers make of the items, whoever is free taking the next."""
    queue, results = iter(list(items)), []

    def take(worker: Worker) -> None:
        for item in queue:  # a list's iterator may be shared by threads
            results.append(work(worker, item))  # noqa: PERF401 (a list extended by two threads)

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(take, workers))
    return results


def _run(workers: list[Worker], every: list[Place], seconds: float) -> dict[str, tuple[str, bool]]:
    """By the name of each mutant its module and whether it survives, as far as the time goes."""
    results: dict[str, tuple[str, bool]] = {}
    begin = time.monotonic()

    def test(worker: Worker, place: Place) -> None:
        if seconds and time.monotonic() - begin > seconds:
            return
        mutated = place.mutated()
        if mutated != Path(place.module).read_text():
            results[place.name(mutated)] = place.module, worker.survives(place.module, mutated)
            print(".", end="", flush=True)

    _together(workers, every, test)
    print()
    return results


def _report(results: dict[str, tuple[str, bool]], known: dict[str, str], *, total: int) -> int:
    survivors = [name for name, (_, survived) in results.items() if survived]
    for name in survivors:
        if name not in known:
            print(f"survived: {name}")
    ran = Counter(module for module, _ in results.values())
    lost = Counter(results[name][0] for name in survivors)
    for module in ran:
        print(f"{module}: {ran[module] - lost[module]} of {ran[module]} noticed")
    score = 1 - len(survivors) / max(1, len(results))
    explained = sum(name in known for name in survivors)
    print(
        f"{len(results)} of {total} mutants: {score:.1%} noticed; "
        f"of {len(survivors)} survivors {explained} are explained in .ci/mutants.toml"
    )
    summary = {"mutants": len(results), "score": score, "survivors": survivors}
    (WORK / "report.json").write_text(json.dumps(summary, indent=2))
    return int(score < SCORE)


if __name__ == "__main__":
    sys.exit(main())
