"""Question files of benchmarks: read with their types, hashed, and missed in words that help."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from star_export.errors import InputError

T = TypeVar("T")

#: Google Drive file of LLaVA-1.5's own question lists, linked in its docs/Evaluation.md.
LLAVA_LISTS = "eval.zip of LLaVA-1.5's docs/Evaluation.md"


class DataFolder:
    """A folder laid out as LLaVA-1.5's evaluation has it.

    Attributes:
        root: The folder.
        hashes: Hex SHA-256 of every file read so far, by its name inside the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hashes: dict[str, str] = {}

    def read(self, name: str, *, source: str) -> bytes:
        """The content of a file.

        Args:
            name: Inside the folder.
            source: Where it is published.

        Raises:
            InputError: If it is missing or cannot be read.
        """
        path = self.root / name
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing; it is published at {source}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        self.hashes[name] = hashlib.sha256(content).hexdigest()
        return content

    def json(self, name: str, kind: type[T], *, source: str) -> T:
        """A JSON file; fields that ``kind`` does not name are left out.

        Raises:
            InputError: If it is missing, or holds something else.
        """
        return self._decode(self.read(name, source=source), kind, name)

    def lines(self, name: str, kind: type[T], *, source: str) -> list[T]:
        """A file with one JSON object a line, as :meth:`json`."""
        lines = self.read(name, source=source).splitlines()
        return [self._decode(line, kind, f"{name}, line {n}") for n, line in enumerate(lines, 1) if line]

    def _decode(self, content: bytes, kind: type[T], name: str) -> T:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            reason = str(error).replace("`", "")
            raise InputError(f"{self.root / name} is no such file as published: {reason}") from error

    def check_pairs(self, questions: Iterable[object], answers: Iterable[object], *, names: str) -> None:
        """Refuse answers without a question and questions without an answer.

        Args:
            questions: Ids of the questions.
            answers: Ids of the answers.
            names: Both files, for the error.

        Raises:
            InputError: With the first that is alone.
        """
        asked, answered = dict.fromkeys(questions), dict.fromkeys(answers)
        alone = {
            "an answer without a question": [key for key in answered if key not in asked],
            "a question without an answer": [key for key in asked if key not in answered],
        }
        for what, keys in alone.items():
            if keys:
                more = f" and {len(keys) - 1} more" if keys[1:] else ""
                raise InputError(
                    f"{names} in {self.root} do not belong together: {what}, {keys[0]}{more}; "
                    "take both from one release"
                )
