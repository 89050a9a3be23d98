"""Weights in host memory."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from star_export.engines.mapped import letting_go, mapped_bytes, mapped_tensors
from star_export.errors import BundleError

TENSORS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.ones(3, np.float16),
    "none": np.zeros((0, 4), np.float32),
}


def test_float32_tensors_are_found_by_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    found = mapped_tensors(tmp_path / "w.safetensors")
    assert found.keys() == {"w", "none"}
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, TENSORS[name])
        assert not tensor.flags.owndata


@pytest.mark.parametrize("cut", [0, 4, 30, -20])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BundleError, match="no weights file"):
        mapped_tensors(path)


def test_a_header_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for header in (
        b"[1, 2]  ",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
    ):
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(BundleError, match="no weights file"):
            mapped_tensors(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_read_is_let_go_of_while_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": np.ones(1 << 22, np.float32)}, path)
    (tensor,) = mapped_bytes(path).values()
    sums = [int(tensor.sum())]
    assert _resident_kb(path) > 16000
    with letting_go([tensor]):
        deadline = time.monotonic() + 10
        while _resident_kb(path) > 1000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        sums.append(int(tensor.sum()))
    assert sums[0] == sums[1]


def _resident_kb(path: Path) -> int:
    """Of the mapping of a file."""
    _, _, behind = Path("/proc/self/smaps").read_text().partition(str(path))
    return int(behind.partition("Rss:")[2].split()[0])
