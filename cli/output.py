"""How commands print: tables and progress for people on stderr, results on stdout."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.text import Text

from star_export.cli.interrupt import stop_if_interrupted
from star_export.errors import SettingsError
from star_export.progress import CaseProgress

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(data: Any, *, line: bool = False) -> None:
    """Print one JSON object on stdout, in one line for who reads while the command goes on."""
    print(json.dumps(data, ensure_ascii=False, indent=None if line else 2), flush=line)


def quiet_libraries() -> None:
    """Keep transformers' notices and progress bars out of the output; call before it is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def show_log(*, verbose: bool) -> None:
    """Print our own log on stderr: warnings, or everything. Errors reach the user as exceptions."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(lambda record: verbose or record.levelno == logging.WARNING)
    log = logging.getLogger("star_export")
    log.handlers = [handler]
    log.setLevel(logging.INFO)


def show_requests() -> None:
    """Print the server's line about each request on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("star_export.requests")
    log.handlers, log.propagate = [handler], False


def check_target(option: str, path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result goes there.

    Raises:
        SettingsError: If it is a folder, or in none that exists and takes files.
    """
    if path.is_dir() or not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise SettingsError(
            f"{option} {path} cannot be written: give a file in a folder that exists and may be written to"
        )


def check_figure(option: str, path: Path) -> None:
    """Refuse what cannot be drawn or written, before any graph runs.

    Raises:
        SettingsError: If it is no .png or .html file, or as in :func:`check_target`.
        PlatformError: If the ``export`` extra is missing.
    """
    from star_export.build import require_export_extra

    if path.suffix.lower() not in (".png", ".html"):
        raise SettingsError(f"{option} must end in .png or .html, got {path}")
    check_target(option, path)
    require_export_extra("onnx")


def megabytes(size: float) -> str:
    """A size for people, in kilobytes where it is no tenth of a megabyte."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


class StepProgress:
    """Shows one line per build step; a bar when its length is known."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: Any = None

    def start(self, step: str, total_bytes: int | None = None) -> None:
        """A step begins; the one before it is done."""
        stop_if_interrupted()
        self.finish()
        self._progress.start()  # a display that never had a step is an empty line
        self._task = self._progress.add_task(step, total=total_bytes)

    def advance(self, done_bytes: int) -> None:
        """Part of the running step is done."""
        self._progress.advance(self._task, done_bytes)

    def finish(self) -> None:
        """The running step is done."""
        if self._task is not None:
            task = self._progress.tasks[self._task]
            self._progress.update(self._task, total=task.total or 1, completed=task.total or 1)


@contextmanager
def step_progress() -> Iterator[StepProgress]:
    """A live display of build steps on stderr."""
    columns = (
        SpinnerColumn(finished_text="[green]done[/green]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=err)
    steps = StepProgress(progress)
    try:
        yield steps
        steps.finish()
    finally:
        if progress.live.is_started:
            progress.stop()


class _Rate(TextColumn):
    """Cases per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """Nothing until some are done."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


@contextmanager
def case_progress(status: Status, cases: str = "questions") -> Iterator[CaseProgress]:
    """A bar of ``cases`` on stderr, which takes the place of ``status`` when the first is asked."""
    columns = (TextColumn(cases), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with ExitStack() as stack:
        progress = Progress(*columns, console=err)
        task = progress.add_task(cases, total=None)

        def update(done: int, total: int) -> None:
            if not progress.live.is_started:
                status.stop()
                stack.enter_context(progress)
                progress.reset(task, total=total, completed=done)  # what was there before is no speed
            progress.update(task, completed=done)

        yield update
