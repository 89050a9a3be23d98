"""The comparison with other runtimes: its arithmetic on made-up records, and sides that fail."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "bench_peers.py"


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_peers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_peers"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def record(ttft: float, decode: float, peak: float) -> dict[str, float]:
    return {"ttft": ttft, "decode": decode, "peak": peak * 1e9, "resident": peak * 1e9}


def test_ratios_are_to_openvinos_best_of_the_same_round_and_bits(peers: ModuleType) -> None:
    def side(name: str, bits: str, kind: str = "openvino") -> object:
        return peers.Side(name=name, bits=bits, kind=kind, folder=Path())

    compared = [
        side("ours", "float", "bundle"),
        side("a", "float"),
        side("b", "float"),
        side("c", "int4"),
        side("int8 of ours", "int8", "bundle"),
    ]
    others = {"c": record(1, 1, 1), "int8 of ours": record(7, 7, 7)}
    rounds = [
        {"ours": record(100, 10, 4), "a": record(200, 30, 2), "b": record(300, 20, 3), **others},
        {"ours": record(1000, 20, 4), "a": record(4000, 30, 2), "b": record(3000, 40, 3), **others},
        {"ours": record(100, 20, 4), "b": record(400, 10, 3)},
    ]
    found = {row.name: row for row in peers.rows(compared, rounds)}
    assert found["ours"].median == record(100, 20, 4)
    assert found["ours"].ratio == {"ttft": 3.0, "decode": 1.5, "peak": 0.5}
    assert found["c"].ratio == {"ttft": 1.0, "decode": 1.0, "peak": 1.0}
    assert found["int8 of ours"].ratio == {}
    lines = peers.table(list(found.values()), {"d": "no wheel"})
    assert "| ours | float | 100 (3.00x) | 20.0 (1.50x) | 4.00 (0.50x) | 4.00 |" in lines
    assert "| int8 of ours | int8 | 7 | 7.0 | 7.00 | 7.00 |" in lines
    assert lines[-1] == "| d | not measured: no wheel | | | | |"


def test_a_side_that_fails_is_a_line_and_the_others_go_on(peers: ModuleType, tmp_path: Path) -> None:
    def side(name: str, command: str, kind: str = "openvino") -> object:
        prepare = (sys.executable, "-c", command)
        return peers.Side(name=name, bits="float", kind=kind, folder=tmp_path / name, prepare=prepare)

    asked: list[str] = []

    def ask(side: object) -> dict[str, float]:
        peers.prepare(side)
        asked.append(side.name)
        if side.name == "ends":
            return dict(peers.measure(side, {}, 60))
        return record(1, 1, 1)

    made = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir()"
    compared = [side("breaks", "raise SystemExit('no wheel')"), side("ends", made, "no"), side("good", made)]
    failed: dict[str, str] = {}
    rounds = peers.take_turns(compared, 2, ask, failed, lambda _text: None)
    assert asked == ["ends", "good", "good"]
    assert failed["breaks"] == "no wheel"
    assert "KeyError" in failed["ends"]
    lines = peers.table(peers.rows(compared, rounds), failed)
    assert sum("not measured" in line for line in lines) == 2
    assert any(line.startswith("| good | float | 1 (1.00x)") for line in lines)


def test_a_side_is_left_when_it_takes_too_long_or_is_not_installed(peers: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError, match="took longer than"):
        peers._run([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    with pytest.raises(ChildProcessError, match="No such file"):
        peers._run([str(tmp_path / "optimum-cli")], None)


def test_the_neighbour_works_until_it_is_left(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(peers.subprocess, "Popen", start)
    with peers.busy_neighbour():
        assert started[0].poll() is None
    assert started[0].poll() is not None


def test_a_bundle_is_measured_in_a_process_of_its_own(
    peers: ModuleType, bundle: Callable[..., Path], picture: Path
) -> None:
    side = peers.Side(name="ours", bits="float", kind="bundle", folder=bundle("mha"))
    request = {"picture": str(picture), "threads": 1, "new_tokens": 4, "repeats": 2}
    found = peers.measure(side, json.loads(json.dumps(request)), 120)
    assert found["ttft"] > found["vision"] + found["prefill"] > 0
    assert found["decode"] > 0
    assert found["peak"] >= found["resident"] * 0.99
