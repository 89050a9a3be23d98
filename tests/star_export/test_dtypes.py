"""The table of element types, against what it names; conversion from and to float32, against torch's."""

import json
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest
import safetensors.torch
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from star_export.arrays import to_device_dtype, to_float32
from star_export.dtypes import DTYPES
from star_export.specs import DType

RANDOM = np.random.default_rng(0)
ODD = [0.0, -0.0, np.inf, -np.inf, 3.4028235e38, 1.17549435e-38, 1e-45, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8]


WHOLE = [name for name, row in DTYPES.items() if row.packed == 1]


@pytest.mark.parametrize("name", [name for name in DTYPES if name not in WHOLE])
def test_two_of_four_bits_share_a_byte(name: str) -> None:
    row, dtype = DTYPES[name], ir.DataType[DTYPES[name].onnx]
    assert [row.nbytes(count) for count in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert (dtype.bitwidth, row.packed, row.host, row.safetensors) == (4, 2, "uint8", "U8")
    assert dtype.name.lower() == name
    for library in ("tensorrt_rtx", "tensorrt_lean"):
        known = pytest.importorskip(library).DataType.__members__
        assert (row.tensorrt in known) == (dtype.name in known) == (name == "int4")


@pytest.mark.parametrize("name", WHOLE)
def test_a_row_names_one_type(name: str) -> None:
    row, dtype = DTYPES[name], getattr(torch, name)
    assert row.itemsize == dtype.itemsize
    assert np.dtype(row.host).itemsize == row.itemsize
    assert row.host == (name if name != "bfloat16" else "uint16")
    assert to_torch_dtype(ir.DataType[row.onnx]) == dtype
    content = safetensors.torch.save({"t": torch.ones(3, dtype=dtype)})
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["t"]["dtype"] == row.safetensors


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("library", ["tensorrt_rtx", "tensorrt_lean"])
def test_tensorrt_has_the_row(library: str, name: str) -> None:
    tensorrt = pytest.importorskip(library)
    assert tensorrt.DataType.__members__[DTYPES[name].tensorrt].itemsize == DTYPES[name].itemsize
    if name != "bfloat16":
        found = tensorrt.nptype(tensorrt.DataType.__members__[DTYPES[name].tensorrt])
        assert np.dtype(found) == DTYPES[name].host


def test_a_bundles_types_are_in_the_table() -> None:
    assert set(get_args(DType)) < DTYPES.keys()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_is_torchs(dtype: DType) -> None:
    bits = RANDOM.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([np.float32(ODD), bits[np.isfinite(bits)]])
    with np.errstate(over="ignore"):
        found = to_device_dtype(values, dtype)
    expected = torch.from_numpy(values).to(getattr(torch, dtype))
    assert found.tobytes() == expected.view(torch.uint8).numpy().tobytes()
    np.testing.assert_array_equal(to_float32(found, dtype), expected.float().numpy())


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001])
def test_nan_stays_nan(bits: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(to_float32(to_device_dtype(value, "bfloat16"), "bfloat16")).all()


def test_shapes_and_strides() -> None:
    values = RANDOM.standard_normal((3, 4, 5)).astype(np.float32).transpose(2, 0, 1)
    found = to_device_dtype(values, "bfloat16")
    assert (found.shape, found.dtype) == (values.shape, np.uint16)
    np.testing.assert_allclose(to_float32(found, "bfloat16"), values, rtol=2**-8)


def test_float32_is_not_copied() -> None:
    values = np.ones(3, np.float32)
    assert to_device_dtype(values, "float32") is values
    assert to_float32(values, "float32") is values
