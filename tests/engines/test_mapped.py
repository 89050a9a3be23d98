"""Weights in host memory."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from star_export.engines.mapped import mapped_tensors
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
