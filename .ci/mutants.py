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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

WORK = Path("build/mutants")
FOLDERS = {"cli": "star_export/cli", "engines": "star_export/engines", "graphs": "star_export/graphs"}
SCORE = 0.85


@dataclass(frozen=True)
class Mutant:
    """One fault: in which module, of which kind, and the lines before and after."""

    module: str
    operator: str
    occurrence: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """What `.ci/mutants.toml` knows it by; line numbers would not last."""
        return f"{self.module}: {self.before} -> {self.after}"


def mutants(module: str) -> Iterator[tuple[Mutant, str]]:
    """Every mutant of a module, with the whole mutated source."""
    source = Path(module).read_text()
    tree = get_ast(source)
    for name in operator_names():
        operator_class = get_operator(name)
        if operator_class.arguments():
            continue  # needs names to put in
        operator = operator_class()
        count = sum(1 for node in ast_nodes(tree) for _ in operator.mutation_positions(node))
        for occurrence in range(count):
            mutated = mutate_code(source, operator, occurrence)
            if mutated is not None and mutated != source:
                yield Mutant(module, name, occurrence, *_changed_line(source, mutated)), mutated


def _changed_line(before: str, after: str) -> tuple[str, str]:
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    return next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("", ""))


class Worker:
    """An installed copy of the package that holds one fault at a time."""

    def __init__(self, number: int, suites: dict[str, list[str]]) -> None:
        self.site, self.suites = WORK / f"site-{number}", suites
        shutil.copytree(WORK / "site", self.site)

    def survives(self, mutant: Mutant, mutated: str) -> bool:
        """Whether the tests of its module pass all the same; a run that hangs notices."""
        top, _, rest = mutant.module.partition("/")
        path = self.site / FOLDERS.get(top, top) / rest
        original = path.read_text()
        path.write_text(mutated)
        try:
            return self.tests(self.suites[mutant.module]) == 0
        finally:
            path.write_text(original)

    def tests(self, files: list[str], seconds: float = 240.0) -> int:
        """The exit code of pytest on some files."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.site.absolute()),
            "PYTHONDONTWRITEBYTECODE": "1",
            "STAR_EXPORT_TEST_BUNDLES": str((WORK / "bundles").absolute()),
        }
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return 1
        return done.returncode


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
    workers = [Worker(number, chosen) for number in range(options.workers)]
    if any(workers[0].tests(files, 900) for files in chosen.values()):
        print("the tests fail without any fault")
        return 2
    every = [pair for module in chosen for pair in mutants(module)]
    random.Random(options.seed).shuffle(every)
    results = _run(workers, every, options.seconds)
    return _report(results, known, total=len(every))


def _run(workers: list[Worker], every: list[tuple[Mutant, str]], seconds: float) -> dict[Mutant, bool]:
    """Whether each survives, as far as the time goes."""
    results: dict[Mutant, bool] = {}
    begin, queue = time.monotonic(), iter(every)

    def work(worker: Worker) -> None:
        for mutant, mutated in queue:  # a list's iterator may be shared by threads
            if seconds and time.monotonic() - begin > seconds:
                return
            results[mutant] = worker.survives(mutant, mutated)

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, workers))
    return results


def _report(results: dict[Mutant, bool], known: dict[str, str], *, total: int) -> int:
    survivors = [mutant for mutant, survived in results.items() if survived]
    for mutant in survivors:
        if mutant.name not in known:
            print(f"survived: {mutant.name}  [{mutant.operator} {mutant.occurrence}]")
    ran, lost = (Counter(m.module for m in some) for some in (results, survivors))
    for module in ran:
        print(f"{module}: {ran[module] - lost[module]} of {ran[module]} noticed")
    score = 1 - len(survivors) / max(1, len(results))
    explained = sum(mutant.name in known for mutant in survivors)
    print(
        f"{len(results)} of {total} mutants: {score:.1%} noticed; "
        f"of {len(survivors)} survivors {explained} are explained in .ci/mutants.toml"
    )
    summary = {"mutants": len(results), "score": score, "survivors": [m.name for m in survivors]}
    (WORK / "report.json").write_text(json.dumps(summary, indent=2))
    return int(score < SCORE)


if __name__ == "__main__":
    sys.exit(main())
