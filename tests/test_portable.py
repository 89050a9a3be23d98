"""What needs Linux is listed here, with the reason; anything else runs on Windows and macOS too."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from star_export import memory

ROOT = Path(__file__).parents[1]
FOLDERS = ("star_export", "graphs", "engines", "cli")

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}
NAMES = {
    *(
        "os.fork",
        "os.forkpty",
        "os.getuid",
        "os.geteuid",
        "os.getpgid",
        "os.killpg",
        "os.mkfifo",
        "os.setsid",
    ),
    *("os.sched_getaffinity", "os.statvfs", "os.sync", "os.uname", "os.wait"),
    *(
        "signal.SIGKILL",
        "signal.SIGHUP",
        "signal.SIGUSR1",
        "signal.SIGUSR2",
        "signal.SIGALRM",
        "signal.alarm",
    ),
    *("signal.pause", "signal.setitimer", "signal.sigwait", "signal.pthread_kill"),
}
KEYWORDS = {"preexec_fn", "start_new_session", "process_group", "pass_fds"}
TEXT = re.compile(r"^/(?:proc|dev|sys|tmp|usr|etc)(?=/|$)|\.so(?=\W|$)")

#: File, what it uses, and why that is no loss elsewhere.
ALLOWED = {
    ("star_export/memory.py", "/proc"): "memory is None where the system does not tell",
    ("star_export/serving/triton/repository.py", ".so"): "Triton runs on Linux",
    ("star_export/serving/triton/tritonserver.py", "start_new_session"): "Triton runs on Linux",
    ("engines/tensorrt/engine.py", ".so"): "beside Windows' name of the same library",
}


def linux_only(source: str) -> Iterator[str]:
    """Names of what only Linux, or only POSIX systems, have; docstrings are no code."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from {alias.name.partition(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            yield from {node.module or ""} & MODULES
            yield from {f"{node.module}.{alias.name}" for alias in node.names} & NAMES
        elif isinstance(node, ast.Attribute):
            yield from {ast.unparse(node)} & NAMES
        elif isinstance(node, ast.keyword):
            yield from {node.arg or ""} & KEYWORDS
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from TEXT.findall(node.value)


def test_what_needs_linux_is_listed() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in linux_only(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import resource", "resource"),
        ("from fcntl import flock", "fcntl"),
        ("from os import fork", "os.fork"),
        ("import os\nos.killpg(1, 9)", "os.killpg"),
        ("import signal\nprocess.send_signal(signal.SIGKILL)", "signal.SIGKILL"),
        ("Popen(command, preexec_fn=limit)", "preexec_fn"),
        ("Path('/proc/self/status')", "/proc"),
        ("Path(f'/dev/shm/{name}')", "/dev"),
        ("ctypes.CDLL('libcuda.so.1')", ".so"),
    ],
)
def test_what_is_found(source: str, name: str) -> None:
    assert list(linux_only(source)) == [name]


@pytest.mark.parametrize("source", ["'''Reads /proc.'''", "a = 'so /proc'", "x = 'star.sock'", "import os"])
def test_what_is_no_matter(source: str) -> None:
    assert list(linux_only(source)) == []


def test_memory_of_this_process() -> None:
    now, peak = memory.resident_bytes("now"), memory.resident_bytes("peak")
    assert now is not None
    assert peak is not None
    assert 20e6 < now <= peak


def test_memory_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert memory.resident_bytes("peak") is None
