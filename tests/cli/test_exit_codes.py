"""Exit code 1 is for a check that failed; whatever else goes wrong is 2, an interrupt 130."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Cli, refused


@pytest.fixture
def failing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """``failing(error, "-v")``: a command in which an error comes up that nobody foresaw."""

    def call(error: BaseException, *options: str) -> object:
        def examine() -> None:
            raise error

        monkeypatch.setattr("star_export.doctor.examine", examine)
        return cli(*options, "doctor", "--json")

    return call


@pytest.mark.parametrize(
    "error",
    [KeyError("a\nb"), EOFError("cut off"), RecursionError(), AssertionError(), UnicodeError("bad")],
    ids=lambda error: type(error).__name__,
)
def test_what_nobody_foresaw(failing: Callable[..., object], error: Exception) -> None:
    outcome = failing(error)
    refused(outcome, f"unexpected {type(error).__name__}")
    refused(outcome, "star-export -v")
    assert "Traceback" in failing(error, "-v").err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_what_the_system_refuses(failing: Callable[..., object], error: Exception) -> None:
    outcome = failing(error)
    refused(outcome, getattr(error, "strerror", "") or "not enough memory")
    assert "unexpected" not in outcome.err
    assert "Traceback" in failing(error, "--verbose").err


def test_an_interrupt(failing: Callable[..., object]) -> None:
    assert failing(KeyboardInterrupt()) == (130, "", "interrupted\n")


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "ImportError('initialization failed')"])
def test_an_interrupt_while_it_starts(error: str) -> None:
    """Importing the commands takes a while; numpy makes an ImportError of Ctrl-C."""
    code = f"""
import builtins, os, signal
import star_export.cli
load = builtins.__import__
def press(name, *rest):
    if name == "rich.console":
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000): pass  # the signal is handled in here
        except KeyboardInterrupt as pressed:
            raise {error} from pressed
    return load(name, *rest)
builtins.__import__ = press
star_export.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "arguments", [(), ("biuld",), ("doctor", "--jsn"), ("inspect",), ("run", "x", "--threads", "0")]
)
def test_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli(*arguments).code == 2


@pytest.mark.parametrize("command", [("--help",), ("inspect", "BUNDLE"), ("inspect", "BUNDLE", "--json")])
def test_a_reader_that_leaves(bundle: Callable[..., Path], command: tuple[str, ...]) -> None:
    """As ``star-export ... | head`` does: nothing on stderr, and no failed check."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [str(bundle("gqa")) if word == "BUNDLE" else word for word in command]
    request = [sys.executable, "-m", "star_export.cli", *arguments]
    done = subprocess.run(request, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (2, "")
