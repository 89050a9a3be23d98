"""Too little disk or memory is refused before anything is written, with the need. Free figures are fakes."""

import platform
import re
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from star_export import room
from star_export.build import BuildOptions, _check_room, build
from star_export.engines.tensorrt.builder import EngineOptions
from star_export.errors import PlatformError
from star_export.memory import available_bytes, give_back, resident_bytes

Usage = namedtuple("Usage", "total used free")
SIZES = {"vision": 600_000_000, "decoder": 13_500_000_000}


def fake_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _folder: Usage(free, 0, free))


def fake_memory(monkeypatch: pytest.MonkeyPatch, available: int | None) -> None:
    monkeypatch.setattr(room, "available_bytes", lambda: available)


@pytest.mark.parametrize("lack", ["disk", "memory"])
def test_a_build_tells_its_need_and_leaves_nothing(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    fake_disk(monkeypatch, 1000 if lack == "disk" else 10**12)
    fake_memory(monkeypatch, 10**9 if lack == "disk" else 300_000_000)
    needs = []
    for kind in (None, "int4"):
        options = BuildOptions(
            model=str(checkpoint("mha")), output=tmp_path / "bundle", quantize=kind,
            max_text_tokens=128, max_new_tokens=32,
        )  # fmt: skip
        with pytest.raises(PlatformError) as found:
            build(options)
        assert list(tmp_path.iterdir()) == []
        needs.append(str(found.value))
    if lack == "memory":
        assert needs[0] == (
            "the build needs about 0.70 GB of memory and 0.30 GB are free; "
            "end other programs, or raise this container's limit"
        )
        return
    form = r"the bundle needs ([\d.]+) MB and the disk has 0.00 MB free; free space or choose another output"
    whole, few = (float(re.fullmatch(form, need)[1]) for need in needs)
    assert 0 < few < whole / 2


def test_engines_with_their_own_weights_need_room_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_disk(monkeypatch, 27_600_000_000)
    fake_memory(monkeypatch, 40_500_000_000)
    baked = EngineOptions(backend="tensorrt-rtx", weights="baked")
    _check_room(tmp_path, SIZES, baked)  # twice the decoder, once the tower
    with pytest.raises(PlatformError, match=r"needs 27.70 GB and the disk has 27.60 GB free"):
        _check_room(tmp_path, SIZES, baked, written=100_000_000)
    _check_room(tmp_path, SIZES, EngineOptions(backend="tensorrt-rtx"), written=27_600_000_000)
    fake_memory(monkeypatch, 40_490_000_000)
    with pytest.raises(PlatformError, match=r"about 40.50 GB of memory and 40.49 GB are free"):
        _check_room(tmp_path, SIZES, baked)
    fake_memory(monkeypatch, None)  # the system does not tell
    _check_room(tmp_path, SIZES, baked)


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4000 kB\nSwapFree: 96 kB\n"}
STAT = "anon 9\nfile 1000\ntotal_cache 2000\n"


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 4096 * 1024),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 4096 * 1024),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "50000\n",  # of a group above
                "sys/fs/cgroup/a/memory.current": "20000\n",
                "sys/fs/cgroup/a/memory.stat": STAT,
            },
            31_000,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n4:memory:/of/the/host\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "50000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "60000\n",
                "sys/fs/cgroup/memory/memory.stat": STAT,
            },
            0,
        ),
    ],
)
def test_control_groups_limit_memory(tmp_path: Path, files: dict[str, str], available: int) -> None:
    assert available_bytes(system(tmp_path, MACHINE | files)) == available


def test_memory_that_nobody_tells(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    found = available_bytes()
    assert found is None or found > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep nothing back")
def test_what_was_freed_is_given_back() -> None:
    arrays = [np.ones(8000) for _ in range(2000)]  # small enough that the C library keeps them
    last = arrays.pop()  # so that they are not at the end of its heap
    arrays.clear()
    before = resident_bytes("now")
    give_back()
    after = resident_bytes("now")
    assert before is not None
    assert after is not None
    assert before - after > 64e6
    assert last.sum() == 8000
