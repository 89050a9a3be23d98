"""What became of a row, and the files that hold it."""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from star_export.errors import BusyError, DeviceError, PlatformError, StarExportError
from star_export.serving.batch.options import Format
from star_export.serving.failure import Failure
from star_export.serving.ticket import Usage
from star_export.typed import convert

log = logging.getLogger("star_export.batch")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A row of the output.

    Attributes:
        row: Its number in the input, counted from 0.
        id: Its own name, if it has one.
        text: The answer without special tokens.
        token_ids: Its tokens, an end token included when there was one.
        finish_reason: ``stop`` or ``length``.
        usage: Tokens and bytes.
    """

    row: int
    id: str | int | None
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A row that was not answered.

    Attributes:
        row: Its number in the input, counted from 0.
        id: Its own name, if it has one.
        kind: A :class:`star_export.serving.failure.Failure`: ``invalid``, ``late`` or ``internal``.
        error: Why.
    """

    row: int
    id: str | int | None
    kind: str
    error: str


Outcome = Answered | Bad


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a query has no answer; see :class:`Bad`."""

    kind: str
    error: str

    @classmethod
    def of(cls, error: Exception) -> "Refusal":
        """What an error means for its row; raises one that concerns every row, and so ends the job."""
        if isinstance(error, DeviceError | BusyError | CancelledError | MemoryError | PlatformError):
            raise error
        known = isinstance(error, StarExportError)
        text = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        if not known:
            log.info("the traceback:", exc_info=error)
        return cls(kind=Failure.of(error).name.lower(), error=" ".join(text.split()))


def line(outcome: Outcome) -> bytes:
    """One line of JSON."""
    return (json.dumps(asdict(outcome), ensure_ascii=False) + "\n").encode()


def read_outcome(values: Any) -> Outcome:
    """The outcome of a line's values.

    Raises:
        ValueError: If they are none.
    """
    if isinstance(values, dict) and "error" in values:
        return convert(values, Bad)
    return convert(values, Answered)


def write_part(file: BinaryIO, rows: Sequence[Answered], kind: Format) -> None:
    """Write rows as one file; equal rows are equal bytes."""
    if kind == "jsonl":
        file.writelines(map(line, rows))
        return
    import pyarrow
    from pyarrow import parquet

    plain = [asdict(row) | {"id": None if row.id is None else str(row.id)} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(plain, _schema()), file)


def _schema() -> Any:
    import pyarrow as pa

    counts = pa.struct([(name, pa.int64()) for name in Usage.__dataclass_fields__])
    return pa.schema(
        [
            ("row", pa.int64()),
            ("id", pa.string()),
            ("text", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("finish_reason", pa.string()),
            ("usage", counts),
        ]
    )
