"""Starting ``tritonserver``: the one on the PATH, or the one in the ``nvidia-pytriton`` wheel."""

import contextlib
import http.client
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_export.errors import PlatformError

#: Seconds that running requests have to finish after Ctrl-C or SIGTERM.
GRACE = 120


@dataclass(frozen=True)
class Server:
    """A ``tritonserver`` that can be started.

    Attributes:
        binary: The executable.
        arguments: What it needs to find its backends.
        environment: Variables to add.
    """

    binary: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]

    def command(self, repository: Path, more: Sequence[str] = ()) -> list[str]:
        """The whole command that serves a repository, and never looks at its files again."""
        return [
            str(self.binary),
            f"--model-repository={repository}",
            "--model-control-mode=none",
            f"--exit-timeout-secs={GRACE}",
            *self.arguments,
            *more,
        ]


@contextlib.contextmanager
def find_server() -> Iterator[Server]:
    """The server of this machine, usable inside the block.

    Raises:
        PlatformError: If there is none.
    """
    here = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
    if (found := shutil.which("tritonserver")) is not None:
        yield Server(Path(found), (), environment)
        return
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise PlatformError(
            "there is no tritonserver on the PATH; run this in NVIDIA's Triton container, "
            "or in an environment with: pip install 'star-export[triton]'"
        )
    home = Path(spec.origin).parent / "tritonserver"
    libraries = home.parents[1] / "nvidia_pytriton.libs"
    environment["LD_LIBRARY_PATH"] = f"{libraries}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}"
    with tempfile.TemporaryDirectory(prefix="star-export-triton-") as folder:
        _lay_out_backend(home, Path(folder) / "python")
        yield Server(home / "bin/tritonserver", (f"--backend-directory={folder}",), environment)


def _lay_out_backend(home: Path, folder: Path) -> None:
    """The wheel's Python backend with the stub of this Python, which it keeps elsewhere."""
    version = ".".join(platform.python_version_tuple()[:2])
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise PlatformError(f"nvidia-pytriton has no Python backend for Python {version}; use another Python")
    folder.mkdir()
    for file in (stub, *(f for f in (home / "backends/python").iterdir() if f.is_file())):
        shutil.copy(file, folder)


def wait_until_ready(process: subprocess.Popen[Any], url: str, *, seconds: float = 120.0) -> None:
    """Wait until a server answers requests.

    Args:
        process: The server, or what started it.
        url: Its HTTP port, such as ``localhost:8000``.
        seconds: How long to wait.

    Raises:
        PlatformError: If it ended, or took longer.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(f"http://{url}/v2/health/ready").close()
            return
        time.sleep(0.2)
    state = f"ended with {process.returncode}" if process.poll() is not None else "is not ready"
    raise PlatformError(f"the server at {url} {state} after at most {seconds:g} s; its log says why")


def serve(repository: Path, more: Sequence[str] = ()) -> None:
    """Run the server until it ends; Ctrl-C and SIGTERM let running requests finish.

    Args:
        repository: From :func:`star_export.serving.triton.repository.write_repository`.
        more: Further options of ``tritonserver``.

    Raises:
        PlatformError: If there is no server, it failed, or it ended though nobody asked it to.
    """
    with find_server() as server:
        asked, started = threading.Event(), list[subprocess.Popen[bytes]]()

        def stop(*_: object) -> None:
            asked.set()
            for process in started:
                process.send_signal(signal.SIGTERM)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        environment = {**os.environ, **server.environment}
        started.append(
            subprocess.Popen(server.command(repository, more), env=environment, start_new_session=True)
        )
        if asked.is_set():  # before it was there
            stop()
        code = started[0].wait()
    if code != 0 or not asked.is_set():
        how = f"failed with exit code {code}" if code else "ended by itself"
        raise PlatformError(f"the server {how}; its log says why; start it again")
