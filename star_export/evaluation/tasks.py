"""Every task, by the name that ``--task`` takes."""

import difflib
from collections.abc import Callable

from star_export.errors import SettingsError, option
from star_export.evaluation.numbers import Numbers
from star_export.evaluation.shapes import Shapes
from star_export.evaluation.task import Task

TASKS: dict[str, Callable[[], Task]] = {"shapes": Shapes, "numbers": Numbers}


def open_task(name: str, *, split: str) -> Task:
    """The task called ``name``.

    Raises:
        SettingsError: If there is no such task, or it has no such split.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError(f"{option('task', name)} does not exist; {hint}tasks are {', '.join(TASKS)}")
    task = TASKS[name]()
    if split not in task.splits:
        raise SettingsError(
            f"{option('split')} must be one of {', '.join(task.splits)} for {name}, got {split}"
        )
    return task
