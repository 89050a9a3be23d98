"""A build that is killed, interrupted or out of disk leaves nothing that loads."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.bundle import open_bundle
from star_export.errors import BundleError

COMMAND = (sys.executable, "-m", "star_export.cli", "build", "--max-new-tokens", "32")


def start(model: Path, output: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, "-m", str(model), "-o", str(output)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(folder: Path, pattern: str, build: subprocess.Popen[str]) -> None:
    """Wait until the build has written a file like ``pattern``."""
    while not list(folder.glob(pattern)):
        assert build.poll() is None, build.communicate()[1]
        time.sleep(0.02)


def test_kill(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    build = start(checkpoint("mha"), tmp_path / "bundle")
    wait_for(tmp_path, ".bundle.partial-*/new/graphs/vision.onnx", build)
    build.send_signal(signal.SIGKILL)
    build.communicate()
    [partial] = tmp_path.iterdir()  # not "bundle"
    assert partial.name.startswith(".bundle.partial-")
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(partial / "new")
    again = start(checkpoint("mha"), tmp_path / "bundle")
    assert again.communicate() is not None
    assert again.returncode == 0
    open_bundle(tmp_path / "bundle", verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]  # the killed one's folder is gone


def test_interrupt(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    build = start(checkpoint("mha"), tmp_path / "bundle")
    wait_for(tmp_path, ".bundle.partial-*/new/graphs/vision.onnx", build)
    build.send_signal(signal.SIGINT)
    _, err = build.communicate()
    assert build.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_is_swallowed_stops_the_next_step() -> None:
    """As it happens when a destructor runs at that moment."""
    code = """
import os, signal
from star_export.cli.interrupt import remember_interrupts
from star_export.cli.output import step_progress
class Dying:
    def __init__(self, error=None):
        self.error = error
    def __del__(self):
        if self.error: raise self.error
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass  # the signal is handled in here
remember_interrupts()
with step_progress() as steps:
    steps.start("one")
    Dying(ValueError("of another kind"))
    Dying()
    print("went on")
    steps.start("two")
    print("went too far")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "went on\n"
    assert done.stderr.count("Exception ignored") == done.stderr.count("of another kind\n") == 1
    assert "KeyboardInterrupt" in done.stderr.splitlines()[-1]


def test_full_disk(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))  # vision fits, the decoder does not

    command = [*COMMAND, "-m", str(checkpoint("mha")), "-o", str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    assert "error: could not write" in done.stderr
    assert "nothing was left behind" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
