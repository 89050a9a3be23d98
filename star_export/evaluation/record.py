"""Answers on disk, one line of JSON per question, so that a killed run can go on."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from star_export.errors import PlatformError, SettingsError, option
from star_export.files import atomic_open
from star_export.typed import convert, parse


@dataclass(frozen=True)
class ScoredAnswer:
    """What one variant answered.

    Attributes:
        text: The answer.
        score: From 0 to 1; None where it is not made here.
        prefill_ms: From the picture's features to the first token, in milliseconds; with others in between
            where questions are decoded together.
    """

    text: str
    score: float | None
    prefill_ms: float


@dataclass(frozen=True)
class Row:
    """One question with the answers of every variant."""

    index: int
    kind: str
    question: str
    expected: str
    answers: dict[str, ScoredAnswer]


class Record:
    """A file of rows that grows; the first line says what was asked of whom.

    Args:
        path: The file.
        settings: Everything that the answers depend on, as JSON values.
        resume: Go on with what the file has; otherwise it is begun anew.

    Raises:
        SettingsError: If the file to resume belongs to other settings.
        PlatformError: If the file cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        found, rows = (_read(path) if resume and path.exists() else None) or (settings, ())
        if found != settings:
            different = [key for key in settings | found if settings.get(key) != found.get(key)]
            raise SettingsError(
                f"{path} belongs to a run with another {', '.join(different)}; "
                f"repeat that run's options, or leave out {option('resume')} to begin anew"
            )
        self.rows = {row.index: row for row in rows}
        try:
            with atomic_open(path) as file:  # without a line that was cut off
                for line in [settings, *map(asdict, self.rows.values())]:
                    file.write(_encode(line))
        except OSError as error:
            raise PlatformError(
                f"{path} cannot be written: {error.strerror or error}; give another {option('answers')}"
            ) from error

    def add(self, row: Row) -> None:
        """Append a row."""
        self.rows[row.index] = row
        with self.path.open("ab") as file:
            file.write(_encode(asdict(row)))


def _encode(line: dict[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()


def _read(path: Path) -> tuple[dict[str, Any], list[Row]] | None:
    """The settings and the rows of a file, up to the first line that was cut off; None if it is the first."""
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    if not whole:
        return None
    try:
        settings, *rows = map(parse, whole)
        return convert(settings, dict[str, Any]), [convert(row, Row) for row in rows]
    except ValueError as error:
        raise SettingsError(
            f"{path} holds no answers ({error}); remove it, or leave out {option('resume')}"
        ) from error
