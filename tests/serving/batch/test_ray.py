"""Replicas on a real Ray cluster of this machine: the bytes of one process, whichever replica dies."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from star_export.engines import Runtime
from star_export.serving.batch.batch import run_batch
from star_export.serving.batch.options import BatchOptions
from tests.serving.batch.test_batch import content, done_rows, good, write

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "star_export.cli", "batch"]


def replicas(mark: str) -> Iterator[int]:
    """Processes of replicas that this test started: whose environment has the mark."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::Remote") and mark.encode() in environment:
            yield int(process.name)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """What processes that this test starts have in their environment."""
    monkeypatch.setenv("STAR_EXPORT_TEST", value := str(uuid.uuid4()))
    return value


def test_two_replicas_of_which_each_dies(
    bundle: Callable[..., Path], data: Path, tmp_path: Path, mark: str
) -> None:
    rows = write(data / "rows.jsonl", [good(i) if i % 9 else {"id": i} for i in range(300)])
    common = {"bundle": bundle("mini"), "input": rows, "rows_per_part": 25, "max_slots": 4}
    run_batch(BatchOptions(output=tmp_path / "one", runtime=Runtime(threads=1), **common))
    command = [*COMMAND, str(bundle("mini")), "--input", str(rows), "--output", str(tmp_path / "two")]
    command += ["--rows-per-part", "25", "--max-slots", "4", "--threads", "1", "--json"]
    command += ["--ray", "local", "--cores-per-replica", str(max(1, (os.cpu_count() or 2) // 2))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    died: set[int] = set()
    for enough in (8, 32):
        while done_rows(tmp_path / "two") < enough:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        while len(alive := set(replicas(mark)) - died) < 2:  # the one that died begins anew
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.kill(victim := min(alive), signal.SIGKILL)
        died.add(victim)
        assert done_rows(tmp_path / "two") < 290
    out, err = process.communicate()
    assert process.returncode == 3, err
    assert json.loads(out)["bad"] == 34
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert "Traceback" not in err


@pytest.fixture
def cluster(mark: str) -> Iterator[Cluster]:
    """Two machines as far as Ray can tell: a head and another, each with a core for one replica."""
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    found = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    # Of an address of its own, or the job may be a guest of the node that goes.
    found.add_node(num_cpus=1, object_store_memory=80 << 20, node_ip_address="127.0.0.2")
    found.wait_for_nodes()
    yield found
    found.shutdown()


def test_a_machine_that_goes(
    bundle: Callable[..., Path], data: Path, tmp_path: Path, cluster: Cluster, mark: str
) -> None:
    """Its rows are answered by the other one."""
    rows = write(data / "rows.jsonl", [good(i) if i % 9 else {"id": i} for i in range(160)])
    common = {"bundle": bundle("mini"), "input": rows, "rows_per_part": 25, "max_slots": 4}
    run_batch(BatchOptions(output=tmp_path / "one", runtime=Runtime(threads=1), **common))
    command = [*COMMAND, str(bundle("mini")), "--input", str(rows), "--output", str(tmp_path / "two")]
    command += ["--rows-per-part", "25", "--max-slots", "4", "--threads", "1", "--json"]
    command += ["--ray", cluster.address, "--cores-per-replica", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while done_rows(tmp_path / "two") < 40 or len(set(replicas(mark))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    (other,) = cluster.worker_nodes
    cluster.remove_node(other, allow_graceful=False)
    assert done_rows(tmp_path / "two") < 140
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert json.loads(out)["bad"] == 18
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ray", "127.0.0.1:9"), "error: the Ray cluster 127.0.0.1:9 cannot be joined"),
        (("--ray", "local", "--cores-per-replica", "9999"), "lower --cores-per-replica"),
    ],
)
def test_no_room(
    bundle: Callable[..., Path], data: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    rows = write(data / "rows.jsonl", [good(0)])
    command = [*COMMAND, str(bundle("mini")), "--input", str(rows), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
