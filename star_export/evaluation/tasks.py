"""Every task, by the name that ``--task`` takes."""

import difflib
from collections.abc import Callable
from pathlib import Path

from star_export.errors import SettingsError, option
from star_export.evaluation.benchmarks.gqa import GQA
from star_export.evaluation.benchmarks.mmbench import MMBench
from star_export.evaluation.benchmarks.mme import MME
from star_export.evaluation.benchmarks.mmvet import MMVet
from star_export.evaluation.benchmarks.pope import POPE
from star_export.evaluation.benchmarks.scienceqa import ScienceQA
from star_export.evaluation.benchmarks.seed import SEED
from star_export.evaluation.benchmarks.textvqa import TextVQA
from star_export.evaluation.benchmarks.vizwiz import VizWiz
from star_export.evaluation.benchmarks.vqav2 import VQAv2
from star_export.evaluation.numbers import Numbers
from star_export.evaluation.shapes import Shapes
from star_export.evaluation.task import Task

#: Tasks that are drawn.
TASKS: dict[str, Callable[[], Task]] = {"shapes": Shapes, "numbers": Numbers}

#: Tasks that are read from a folder.
BENCHMARKS: dict[str, Callable[[Path], Task]] = {
    "vqav2": VQAv2,
    "gqa": GQA,
    "vizwiz": VizWiz,
    "scienceqa": ScienceQA,
    "textvqa": TextVQA,
    "pope": POPE,
    "mme": MME,
    "mmvet": MMVet,
    "mmbench": MMBench,
    "seed": SEED,
}


def open_task(name: str, *, split: str | None = None, data: Path | None = None) -> Task:
    """The task called ``name``.

    Args:
        name: A key of :data:`TASKS` or :data:`BENCHMARKS`.
        split: Must be one of its splits, if given.
        data: The folder with a benchmark's files.

    Raises:
        SettingsError: If there is no such task, it has no such split, or ``data`` is missing or too much.
    """
    if name not in TASKS | BENCHMARKS:
        near = difflib.get_close_matches(name, TASKS | BENCHMARKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(TASKS | BENCHMARKS)
        raise SettingsError(f"{option('task', name)} does not exist; {hint}tasks are {known}")
    if name in TASKS and data is not None:
        raise SettingsError(f"{option('data')} has no meaning for {name}, which is drawn; leave it out")
    if name in BENCHMARKS and (data is None or not data.is_dir()):
        given = "is not given" if data is None else f"{data} is no folder"
        raise SettingsError(
            f"{option('data')} {given}; {name} is read from a folder laid out as docs/benchmarks.md says"
        )
    task = TASKS[name]() if data is None else BENCHMARKS[name](data)
    if split is not None and split not in task.splits:
        raise SettingsError(
            f"{option('split')} must be one of {', '.join(task.splits)} for {name}, got {split}"
        )
    return task
