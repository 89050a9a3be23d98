"""Rows as queries: which column is what, where pictures lie."""

import difflib
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from star_export.errors import InputError, PlatformError, SettingsError, marked, option, spelled
from star_export.serving.batch.options import Defaults
from star_export.serving.query import Query
from star_export.serving.remote import fetch
from star_export.typed import parse

#: A field of queries for which answers of rows have no place.
_UNWRITTEN = "top_logprobs"

#: What a row may have; columns of other names are not read.
FIELDS = ("id", "messages", *(field.name for field in fields(Query) if field.name != _UNWRITTEN))

#: Bytes of a picture's file.
LARGEST_FILE = 512 << 20
#: How long fetching a picture may take.
FETCH_SECONDS = 30.0
#: How alike a column's name and a field must be for one to be a slip of the other.
_ALIKE = 0.88
#: Text that is longer, names no file and has no dot is a picture in base64.
_LONG = 64
_WEB = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Rows:
    """Makes queries of rows; any thread may.

    Args:
        columns: Field to the column of another name that holds it.
        images: Folder that paths are relative to.
        defaults: What rows ask that do not say it themselves.
        remote: Whether pictures are fetched from public web addresses.

    Raises:
        SettingsError: If there is no such field.
    """

    def __init__(
        self, columns: Mapping[str, str], images: Path, defaults: Defaults, *, remote: bool = False
    ) -> None:
        for name in columns:
            if name not in FIELDS:
                near = difflib.get_close_matches(name, FIELDS, 1)
                meant = f"did you mean {near[0]}?" if near else f"fields are {', '.join(FIELDS)}"
                raise SettingsError(f"{option('column')} knows no field {name}; {meant}")
        self._columns = {name: columns.get(name, name) for name in FIELDS}
        self._names = {*FIELDS, *self._columns.values()}
        self._images, self._defaults, self._remote = images, defaults.given, remote

    def check(self, found: Iterable[str]) -> None:
        """Refuse a file without the columns that are needed, and one whose columns look like slips.

        Raises:
            SettingsError: With what is missing and what was found.
        """
        found = list(found)
        needed = {"image", *(field for field, column in self._columns.items() if field != column)}
        if "prompt" not in self._defaults and self._columns["messages"] not in found:
            needed.add("prompt")
        for field in FIELDS:
            if field in needed and self._columns[field] not in found:
                raise SettingsError(
                    f"the input has no column {self._columns[field]}, "
                    f"there are {', '.join(found) or 'none'}; "
                    f"say which it is: {option('column', f'{field}=NAME')}"
                )
        if slip := self._slip(found):
            raise SettingsError(slip)

    def identity(self, values: Mapping[str, Any]) -> str | int | None:
        """The row's own name.

        Raises:
            InputError: If it is neither a text nor an integer.
        """
        found = values.get(self._columns["id"])
        if found is None or (isinstance(found, str | int) and not isinstance(found, bool)):
            return found
        raise InputError(f"id must be a text or an integer, got {type(found).__name__}")

    def query(self, values: Mapping[str, Any]) -> Query:
        """What the row asks, its pictures read.

        Raises:
            InputError: If a value is missing or of another type, or a picture cannot be read.
        """
        if slip := self._slip(values):
            raise InputError(slip)
        given = {name: values[column] for name, column in self._columns.items() if column in values}
        given.pop("id", None)
        if "messages" in given:
            if "prompt" in given:
                raise InputError("prompt and messages are both given; give one of them")
            given["prompt"] = _messages(given.pop("messages"))
        if "image" in given:
            image = given["image"]
            several = isinstance(image, list)
            given["image"] = tuple(map(self._picture, image)) if several else self._picture(image)
        return Query.of(self._defaults | given)

    def told(self, number: int, error: PlatformError) -> PlatformError:
        """What this machine lacks for a row, in words of its columns."""
        text = spelled(marked(error), lambda name: f"column {self._columns.get(name, name)}")
        return PlatformError(f"row {number}: {text}")

    def _slip(self, found: Iterable[str]) -> str | None:
        """What is wrong with the first column that is not read and looks as if it were meant to be."""
        for name in found:
            if name == _UNWRITTEN and name not in self._names:
                return f"column {name} would not be read: logprobs are not written; leave it out"
            if name not in self._names and (near := difflib.get_close_matches(name, FIELDS, 1, _ALIKE)):
                return (
                    f"column {name} would not be read; did you mean {near[0]}? "
                    f"say {option('column', f'{near[0]}={name}')} or give the column another name"
                )
        return None

    def _picture(self, value: object) -> bytes:
        """An encoded picture, in any of the forms that data sets have."""
        if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:  # `datasets.Image`
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise InputError(
                "image must be a path, encoded bytes, base64, a data URL, a list of these or "
                f'{{"bytes": ..., "path": ...}}, got {type(value).__name__}'
            )
        if value.startswith("data:"):
            return value.encode()
        if _WEB.match(value):
            return self._fetched(value)
        path = self._images / value
        if not os.path.isfile(path) and len(value) > _LONG and "." not in value:  # noqa: PTH113 - Path's raises
            return value.encode()
        return _read(path)

    def _fetched(self, url: str) -> bytes:
        if not self._remote:
            raise InputError(
                f"{url[:80]} is a web address; download the picture and give its path, "
                f"or allow it with {option('allow_remote_images')}"
            )
        return fetch(url, most=LARGEST_FILE, deadline=time.monotonic() + FETCH_SECONDS)


def _read(path: Path) -> bytes:
    if not os.path.isfile(path):  # noqa: PTH113 - Path's raises where a name is too long
        raise InputError(f"{str(path)[:300]} is no file; give the path of a picture")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_FILE:
        raise InputError(f"{path} is larger than {LARGEST_FILE >> 20} MiB; scale the picture down")
    if data.isascii() and not data.startswith(b"P"):  # else it would be taken for base64
        raise InputError(f"{path} is not a picture that Pillow can read (PNG, JPEG, WebP, ...)")
    return data


def _messages(found: Any) -> Any:
    """A conversation, also as JSON text."""
    try:
        messages = parse(found.encode()) if isinstance(found, str) else found
    except ValueError as error:
        raise InputError(f"messages cannot be read: {error}") from error
    if not isinstance(messages, list):
        raise InputError(f"messages must be a list of messages, got {type(messages).__name__}")
    return messages
