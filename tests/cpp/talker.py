"""Small C++ programs that tests speak with, a line of JSON for a line of JSON."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from star_export.errors import BundleError, InputError, PlatformError, SettingsError

BUILD = Path(os.environ.get("STAR_EXPORT_CPP", Path(__file__).parents[2] / "build/cpp"))
_KINDS = {0: SettingsError, 1: BundleError, 2: InputError, 3: PlatformError}


class Talker:
    """One running program; its errors are raised as Python's."""

    def __init__(self, name: str) -> None:
        program = BUILD / name
        if not program.exists():
            pytest.skip(f"no {program}: build engines/cpp, or set STAR_EXPORT_CPP to its build folder")
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, what: str, **values: Any) -> Any:
        """What the program answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **values}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the program died of {self._process.wait()}"
        reply = json.loads(line)
        if "error" in reply:
            raise _KINDS[reply["kind"]](reply["error"])
        return reply["result"]

    def __enter__(self) -> "Talker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)
