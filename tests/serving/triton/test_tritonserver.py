"""Starting a server and waiting for its end, with fakes of ``tritonserver`` that are shell scripts."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.errors import PlatformError
from star_export.serving.triton import tritonserver as server
from star_export.serving.triton.tritonserver import find_server, serve, wait_until_ready


@pytest.fixture
def tritonserver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``tritonserver("exit 3")``: put a script of that name on the PATH; signals are set back."""

    def write(script: str) -> None:
        path = tmp_path / "bin/tritonserver"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield write
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_server_gets_its_command_and_the_path_of_packages(tritonserver, tmp_path: Path) -> None:
    tritonserver(f'echo "$@" > {tmp_path}/given; echo "$PYTHONPATH" >> {tmp_path}/given; exit 3')
    with pytest.raises(PlatformError, match="the server failed with exit code 3; its log says why"):
        serve(tmp_path / "repository", ["--http-port=9000"])
    given, path = (tmp_path / "given").read_text().splitlines()
    assert given == (
        f"--model-repository={tmp_path}/repository --model-control-mode=none "
        "--exit-timeout-secs=120 --http-port=9000"
    )
    assert any(folder.endswith("site-packages") for folder in path.split(os.pathsep))


def test_a_server_that_ends_by_itself_has_failed(tritonserver, tmp_path: Path) -> None:
    tritonserver("exit 0")
    with pytest.raises(PlatformError, match="the server ended by itself"):
        serve(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_asked_to_end_has_not(tritonserver, tmp_path: Path, number: int) -> None:
    ready, leaders = tmp_path / "ready", []
    waiting = "while :; do sleep 0.02; done"
    tritonserver(f"trap 'exit 0' TERM; trap 'exit 9' INT; echo $$ > {ready}.; mv {ready}. {ready}; {waiting}")

    def ask() -> None:
        while not ready.exists():
            time.sleep(0.01)
        child = int(ready.read_text())
        leaders.append(os.getsid(child) == child)  # so that a terminal's Ctrl-C does not reach it too
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    serve(tmp_path)
    asking.join()
    assert leaders == [True]


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.shutil, "which", lambda name: None)
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(PlatformError, match=r"no tritonserver on the PATH.*star-export\[triton\]"),
        find_server(),
    ):
        pass


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake of what nvidia-pytriton installs; its tritonserver folder."""
    home = tmp_path / "pytriton/tritonserver"
    stubs = home / "python_backend_stubs"
    for version in ("3.11", "3.12", "3.13", "3.14"):
        (stubs / version).mkdir(parents=True)
        (stubs / version / "triton_python_backend_stub").write_text(version)
    (home / "backends/python/folder").mkdir(parents=True)
    (home / "backends/python/libtriton_python.so").write_text("library")
    origin = type("Spec", (), {"origin": str(tmp_path / "pytriton/__init__.py")})
    monkeypatch.setattr(server.shutil, "which", lambda name: None)
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: origin)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/own")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    return home


def test_the_server_of_the_wheel(wheel: Path) -> None:
    with find_server() as found:
        assert found.binary == wheel / "bin/tritonserver"
        (option,) = found.arguments
        folder = Path(option.removeprefix("--backend-directory=")) / "python"
        stub = "triton_python_backend_stub"
        assert sorted(file.name for file in folder.iterdir()) == ["libtriton_python.so", stub]
        assert (folder / stub).read_text() == f"{sys.version_info.major}.{sys.version_info.minor}"
        libraries = wheel.parents[1] / "nvidia_pytriton.libs"
        assert found.environment["LD_LIBRARY_PATH"] == f"{libraries}:/own"
        assert found.environment["PYTHONPATH"].endswith("site-packages:/mine")
    assert not folder.exists()


def test_a_python_that_the_wheel_does_not_know(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.platform, "python_version_tuple", lambda: ("3", "99", "0"))
    with pytest.raises(PlatformError, match=r"no Python backend for Python 3\.99"), find_server():
        pass


class _Health(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if self.path == "/v2/health/ready" and self.asked > 2 else 400)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def sleeping(code: str = "import time; time.sleep(60)") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def test_waiting_until_the_server_says_that_it_is_ready() -> None:
    process, health = sleeping(), http.server.HTTPServer(("localhost", 0), _Health)
    threading.Thread(target=health.serve_forever, daemon=True).start()
    try:
        wait_until_ready(process, f"localhost:{health.server_port}")
        assert _Health.asked == 3
    finally:
        process.kill()
        process.wait()
        health.shutdown()


def test_a_server_that_never_gets_ready() -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))  # and nobody listens
        url = f"localhost:{probe.getsockname()[1]}"
        process = sleeping()
        try:
            with pytest.raises(PlatformError, match=f"{url} is not ready after at most 0.3 s"):
                wait_until_ready(process, url, seconds=0.3)
        finally:
            process.kill()
            process.wait()
        with pytest.raises(PlatformError, match=f"{url} ended with 4 after"):
            wait_until_ready(sleeping("raise SystemExit(4)"), url)
