"""Files of rows, read as a stream from any row on."""

import gzip
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from star_export.errors import InputError, PlatformError, SettingsError, option
from star_export.serving.batch.options import Format
from star_export.typed import parse

#: Values of a row by its columns; of a row that cannot be read, why.
Values = dict[str, Any] | InputError

#: Bytes of a line; a longer one is a bad row.
LONGEST_LINE = 256 << 20
#: Lines that are searched for the names of columns.
_HEAD = 100
#: Rows of a Parquet file in memory, besides those that are being answered.
_BATCH = 16
_PARQUET_MISSING = "Parquet files need pyarrow; run: pip install 'star-export[batch]'"


class Table(Protocol):
    """Rows in their order, counted from 0."""

    format: Format

    def columns(self) -> list[str]:
        """Names of columns; of JSON lines, those of the first rows."""

    def count(self) -> int:
        """How many rows there are."""

    def rows(self, start: int) -> Iterator[Values]:
        """Row ``start`` and those behind it; nulls are left out.

        Raises:
            InputError: If the file is damaged.
        """


def open_table(path: Path) -> Table:
    """A file of rows, by the ending of its name.

    Raises:
        SettingsError: If the ending is another one.
        InputError: If it cannot be read.
        PlatformError: If it is a Parquet file and pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        return Parquet(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return Lines(path)
    raise SettingsError(f"{option('input')} must end with .jsonl, .jsonl.gz or .parquet, got {path}")


class Lines:
    """JSON objects, one a line; blank lines are no rows.

    Args:
        path: The file, compressed with gzip if it ends with ``.gz``.

    Raises:
        InputError: If it cannot be read.
    """

    format: Format = "jsonl"

    def __init__(self, path: Path) -> None:
        self.path = path
        next(self._lines(), None)

    def columns(self) -> list[str]:
        """Names of the first rows' columns.

        Raises:
            InputError: If not one of these rows can be read.
        """
        head = list(islice(self.rows(0), _HEAD))
        if head and all(isinstance(values, InputError) for values in head):
            raise InputError(f"{self.path} holds no rows that can be read; the first: {head[0]}")
        return list(dict.fromkeys(name for values in head if isinstance(values, dict) for name in values))

    def count(self) -> int:
        """How many rows there are; reads the whole file."""
        return sum(1 for _ in self._lines())

    def rows(self, start: int) -> Iterator[Values]:
        """Row ``start`` and those behind it."""
        return map(_values, islice(self._lines(), start, None))

    def _lines(self) -> Iterator[bytes]:
        opened = gzip.open if self.path.suffix == ".gz" else open
        try:
            with opened(self.path, "rb") as file:
                while line := file.readline(LONGEST_LINE):
                    rest = line
                    while rest and not rest.endswith(b"\n"):
                        rest = file.readline(LONGEST_LINE)
                    if line.strip():
                        yield line
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{self.path} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error


def _values(line: bytes) -> Values:
    if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
        return InputError(f"the line is longer than {LONGEST_LINE >> 20} MiB; give pictures as paths")
    try:
        values = parse(line)
    except ValueError as error:
        return InputError(str(error))
    if not isinstance(values, dict):
        return InputError(f"a row must be a JSON object, got {type(values).__name__}")
    found: dict[str, Any] = without_nulls(values)
    return found


class Parquet:
    """A Parquet file, of which no more than a row group is in memory.

    Args:
        path: The file.

    Raises:
        InputError: If it cannot be read.
        PlatformError: If pyarrow is not installed.
    """

    format: Format = "parquet"

    def __init__(self, path: Path) -> None:
        require_pyarrow()
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        self.path, self._errors = path, (ArrowException, OSError)
        try:
            self._file = ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        except self._errors as error:
            raise self._damaged(error) from error

    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._file.schema_arrow.names)

    def count(self) -> int:
        """How many rows there are."""
        return int(self._file.metadata.num_rows)

    def rows(self, start: int) -> Iterator[Values]:
        """Row ``start`` and those behind it."""
        metadata = self._file.metadata
        try:
            for group in range(metadata.num_row_groups):
                if start >= (rows := metadata.row_group(group).num_rows):
                    start -= rows
                    continue
                for batch in self._file.iter_batches(_BATCH, row_groups=[group]):
                    yield from map(without_nulls, batch.slice(start).to_pylist())
                    start = max(0, start - batch.num_rows)
        except self._errors as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self.path} cannot be read: {getattr(error, 'strerror', None) or error}")


def require_pyarrow() -> None:
    """Refuse Parquet where nothing reads or writes it.

    Raises:
        PlatformError: With what installs it.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise PlatformError(_PARQUET_MISSING) from error


def without_nulls(values: Any) -> Any:
    """Values without the keys that hold none, at every depth: a table has each key in each row."""
    if isinstance(values, dict):
        return {name: without_nulls(value) for name, value in values.items() if value is not None}
    return [without_nulls(value) for value in values] if isinstance(values, list) else values
