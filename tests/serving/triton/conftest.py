"""A real tritonserver, started as users start it."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from star_export.serving.triton.tritonserver import wait_until_ready


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    process: subprocess.Popen[str]
    repository: Path
    http: str
    grpc: str
    metrics: str

    def metric(self, name: str, **labels: str) -> float:
        """A number of the metrics endpoint."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as response:
            lines = response.read().decode().splitlines()
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        (line,) = (x for x in lines if x.startswith(f"{name}{{") and all(label in x for label in wanted))
        return float(line.split()[-1])

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has a value: metrics are published twice a second."""
        deadline = time.monotonic() + 20
        while (found := self.metric(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}, not {value}"
            time.sleep(0.1)


ENVIRONMENT = Path(os.environ.get("STAR_EXPORT_TRITON", ".venv-triton")).absolute()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """``serve(bundle, "--max-slots", "2")``: write a repository and start a server on it."""
    started: list[subprocess.Popen[str]] = []

    def start(bundle: Path, *options: str) -> Running:
        repository = tmp_path_factory.mktemp("triton") / "repository"
        command = [ENVIRONMENT / "bin/star-export", "triton", bundle, "-o", repository]
        command += ["--threads", "1", "--serve", *options, "--"]
        running = launch(repository, [*map(str, command)])
        started.append(running.process)
        return running

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
    for process in started:
        assert process.wait(60) == 0


def launch(repository: Path, command: list[str]) -> Running:
    """Start a server with ports of its own and wait until it is ready; its log lies beside the repository."""
    ports = [_free_port() for _ in range(3)]
    own = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    with repository.with_name("log.txt").open("w") as log:
        process = subprocess.Popen([*command, *own], stdout=log, stderr=subprocess.STDOUT, text=True)
    http, grpc, metrics = (f"localhost:{port}" for port in ports)
    wait_until_ready(process, http)
    _wait_for_port(ports[2])  # Triton is ready some milliseconds before its metrics are
    return Running(process, repository, http, grpc, metrics)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    with socket.socket() as probe:
        while probe.connect_ex(("localhost", port)) != 0:
            assert time.monotonic() < deadline, f"nothing listens at port {port}"
            time.sleep(0.05)
