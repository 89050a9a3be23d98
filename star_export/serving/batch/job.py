"""A job's folder: what is done of it stays done, whenever its process is killed.

``job.json`` says what the job is. ``journal.jsonl`` has the rows that are done and in no part yet, in
the order in which they were; a row is done once its line is there. Parts hold a fixed range of rows,
in their order. A part is written when all of its rows are done: first what is bad of it is appended to
``errors.jsonl``, then it takes its name, then its rows leave the journal. Whatever a kill leaves
between two of these steps is undone when the job goes on.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from star_export.errors import PlatformError, SettingsError, option
from star_export.files import atomic_open, write_json
from star_export.serving.batch.options import Format
from star_export.serving.batch.outcome import Answered, Bad, Outcome, line, read_outcome, write_part
from star_export.typed import parse

JOB, JOURNAL, ERRORS, LOCK = "job.json", "journal.jsonl", "errors.jsonl", ".lock"


class Job:
    """A job's folder, held by this process; only one thread uses it. See :func:`open_job`.

    Args:
        folder: The folder.
        total: Rows of the job.
        rows_per_part: Rows of each part but the last.
        kind: What parts are written as.

    Attributes:
        start: The first row that is in no part.
        bad: Rows in ``errors.jsonl``.
        done: Rows that are done.
    """

    def __init__(self, folder: Path, *, total: int, rows_per_part: int, kind: Format) -> None:
        self.folder, self.total = folder, total
        self._rows_per_part, self._kind = rows_per_part, kind
        for leftover in (
            *folder.glob(".part-*"),
            *folder.glob(f".{JOURNAL}.*"),
            *folder.glob(f".{ERRORS}.*"),
        ):
            leftover.unlink()
        self.start = 0
        while self.start < total and self._part(self.start).is_file():
            self.start = min(self.start + rows_per_part, total)
        self._front = self.start  # rows before it are done
        kept = [found for found in _read(folder / ERRORS) if found.row < self.start]
        self.bad = len(kept)
        self._rewrite(ERRORS, kept)
        self._pending = {o.row: o for o in _read(folder / JOURNAL) if self.start <= o.row < total}
        self._journal = self._rewrite_journal()
        self._publish()

    def __contains__(self, row: int) -> bool:
        return row < self.start or row in self._pending

    @property
    def done(self) -> int:
        """Rows that are done."""
        return self.start + len(self._pending)

    @property
    def parts(self) -> int:
        """Files of answers."""
        return -(-self.start // self._rows_per_part)

    def record(self, outcome: Outcome) -> None:
        """A row is done.

        Raises:
            PlatformError: If it cannot be written; what was done before stays done.
        """
        with _writing(self.folder):
            self._journal.write(line(outcome))
            self._journal.flush()
            self._pending[outcome.row] = outcome
            self._publish()

    def close(self) -> None:
        """Close the journal, and remove it when every row is in a part."""
        self._journal.close()
        if self.start == self.total:
            (self.folder / JOURNAL).unlink()
            if not self.bad:
                (self.folder / ERRORS).unlink()

    def _publish(self) -> None:
        """Write the parts whose rows are all done."""
        before = self.start
        while self._front in self._pending:
            self._front += 1
            if self._front in (self.start + self._rows_per_part, self.total):
                self._write(range(self.start, self._front))
        if self.start > before:
            self._journal.close()
            self._journal = self._rewrite_journal()

    def _write(self, rows: range) -> None:
        outcomes = [self._pending.pop(row) for row in rows]
        bad = [outcome for outcome in outcomes if isinstance(outcome, Bad)]
        with (self.folder / ERRORS).open("ab") as file:
            file.writelines(map(line, bad))
        with atomic_open(self._part(rows.start)) as file:
            write_part(file, [outcome for outcome in outcomes if isinstance(outcome, Answered)], self._kind)
        self.start, self.bad = rows.stop, self.bad + len(bad)

    def _part(self, row: int) -> Path:
        return self.folder / f"part-{row // self._rows_per_part:05}.{self._kind}"

    def _rewrite(self, name: str, outcomes: list[Outcome]) -> None:
        with atomic_open(self.folder / name) as file:
            file.writelines(map(line, outcomes))

    def _rewrite_journal(self) -> BinaryIO:
        self._rewrite(JOURNAL, list(self._pending.values()))
        return (self.folder / JOURNAL).open("ab")


@contextmanager
def open_job(
    folder: Path, settings: dict[str, Any], *, total: int, rows_per_part: int, kind: Format
) -> Iterator[Job]:
    """Begin a job in a new or empty folder, or go on with the one that is there.

    Args:
        folder: The folder.
        settings: Everything that the output depends on, as JSON values.
        total: Rows of the job.
        rows_per_part: Rows of each part but the last.
        kind: What parts are written as.

    Raises:
        SettingsError: If it holds another job or something else, or another process is at it.
        PlatformError: If it cannot be written.
    """
    try:
        _check_folder(folder, settings)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise SettingsError(f"another process is at the job in {folder}; wait for its end") from error
    except OSError as error:
        raise PlatformError(f"{option('output')} {folder} cannot be written: {error.strerror}") from error
    try:
        _check_folder(folder, settings)
        if not (folder / JOB).exists():
            write_json(folder / JOB, settings)
        with _writing(folder):
            job = Job(folder, total=total, rows_per_part=rows_per_part, kind=kind)
        try:
            yield job
        finally:
            with _writing(folder):
                job.close()
    finally:
        lock.release()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PlatformError(
            f"the job in {folder} cannot be written: {error.strerror}; mend that, and the same job goes on"
        ) from error


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    if not folder.exists():
        return
    path = folder / JOB
    if not path.is_file():
        if any(other.name != LOCK and not other.name.startswith(f".{JOB}.") for other in folder.iterdir()):
            raise SettingsError(f"{folder} is not empty and holds no job; choose another {option('output')}")
        return
    try:
        found = parse(path.read_bytes())
        different = [name for name in settings | found if settings.get(name) != found.get(name)]
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} is damaged: {error}; choose another {option('output')}") from error
    if different:
        raise SettingsError(
            f"{folder} holds a job with another {', '.join(different)}; "
            f"repeat that job's options to go on with it, or choose another {option('output')}"
        )


def _read(path: Path) -> list[Outcome]:
    """The outcomes of a file, up to a line that was cut off."""
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        return [read_outcome(parse(one)) for one in lines if one.endswith(b"\n")]
    except ValueError as error:
        raise SettingsError(f"{path} is damaged: {error}; remove it to answer its rows again") from error


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are read back: tuples become lists."""
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found
