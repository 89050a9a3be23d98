"""Packed layers of AWQ, GPTQ and compressed-tensors: what is read is what each format's definition says."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

from star_export.checkpoint.checkpoint import Checkpoint
from star_export.checkpoint.scheme import Scheme
from star_export.checkpoint.tensors import StoredTensor
from star_export.errors import CheckpointError
from star_export.graphs.quantize import dequantize
from star_export.graphs.unpack import PackedLayer, kept_quantization, packed_layer
from tests import packing

INPUTS, OUTPUTS = 192, 16
SCHEMES = {
    "awq": Scheme(method="awq", packing="awq", bits=4, group=64, symmetric=False),
    "gptq": Scheme(method="gptq", packing="gptq", bits=4, group=64, symmetric=False, zero_offset=1),
    "gptq-v2": Scheme(method="gptq", packing="gptq", bits=8, group=32, symmetric=False),
    "gptq-symmetric": Scheme(
        method="gptq", packing="gptq", bits=8, group=None, symmetric=True, zero_offset=1
    ),
    "packed": Scheme(method="compressed-tensors", packing="pack-quantized", bits=4, group=32, symmetric=True),
    "packed-zeros": Scheme(
        method="compressed-tensors", packing="pack-quantized", bits=8, group=128, symmetric=False
    ),
    "channel": Scheme(
        method="compressed-tensors", packing="int-quantized", bits=8, group=None, symmetric=True
    ),
    "channel-zeros": Scheme(
        method="compressed-tensors", packing="int-quantized", bits=8, group=None, symmetric=False
    ),
}


def layer_of(scheme: Scheme, *, seed: int = 0, groups: Any = None) -> packing.Layer:
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(seed))
    return packing.quantised(
        weight, bits=scheme.bits, group=scheme.group, symmetric=scheme.symmetric, groups=groups
    )


def packed(layer: packing.Layer, scheme: Scheme) -> packing.Tensors:
    if scheme.packing == "awq":
        return packing.awq(layer, scheme.bits)
    if scheme.packing == "gptq":
        return packing.gptq(layer, scheme.bits, offset=scheme.zero_offset)
    if scheme.packing == "pack-quantized":
        return packing.pack_quantized(layer, scheme.bits, zeros=not scheme.symmetric)
    return packing.int_quantized(layer, scheme.bits, zeros=not scheme.symmetric)


def stored(tensors: packing.Tensors, folder: Path, scheme: Scheme) -> Checkpoint:
    """A checkpoint of one layer, ``q``."""
    path = folder / "model.safetensors"
    save_file({f"q.{name}": tensor for name, tensor in tensors.items()}, path)
    parts = {name: StoredTensor(path, f"q.{name}", tuple(tensor.shape)) for name, tensor in tensors.items()}
    return Checkpoint(folder, "source", None, None, {}, scheme, {"q": parts})  # type: ignore[arg-type]


def read(tensors: packing.Tensors, folder: Path, scheme: Scheme) -> PackedLayer:
    found = packed_layer(stored(tensors, folder, scheme), "q", INPUTS, OUTPUTS)
    assert found is not None
    return found


@pytest.mark.parametrize("name", SCHEMES)
def test_every_format(tmp_path: Path, name: str) -> None:
    scheme = SCHEMES[name]
    expected = layer_of(scheme)
    found = read(packed(expected, scheme), tmp_path, scheme)
    assert torch.equal(found.values().T, expected.values)
    block = found.block()
    assert block == {None: 64, 32: 32, 64: 64, 128: 64}[scheme.group]
    for held in {32, block}:
        integers, scale, *zero = found.blocks(held)
        assert scale.shape == (INPUTS // held, OUTPUTS)
        assert bool(zero) != scheme.symmetric
        assert torch.equal(dequantize(integers, scale, *zero).T, expected.values)
        low = -(1 << (scheme.bits - 1)) if scheme.symmetric else 0
        assert low <= integers.min()
        assert integers.max() < low + (1 << scheme.bits)


def test_numbers_by_hand(tmp_path: Path) -> None:
    """One word of each: AWQ's columns lie 0 2 4 6 1 3 5 7 from the lowest bits, GPTQ's inputs in order."""
    scales = torch.full((1, 8), 0.5).half()
    word = torch.tensor([[0x75316420]], dtype=torch.int32)
    awq = Scheme(method="awq", packing="awq", bits=4, group=None, symmetric=False)
    tensors = {"qweight": word, "qzeros": torch.tensor([[0x22222222]], dtype=torch.int32), "scales": scales}
    found = packed_layer(stored(tensors, tmp_path, awq), "q", 1, 8)
    assert found is not None
    assert found.values().tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5]]
    gptq = Scheme(method="gptq", packing="gptq", bits=4, group=None, symmetric=False, zero_offset=1)
    tensors = {
        "qweight": torch.tensor([[0x76543210] * 8], dtype=torch.int32),
        "qzeros": torch.tensor([[0x11111111]], dtype=torch.int32),
        "scales": scales,
    }
    found = packed_layer(stored(tensors, tmp_path, gptq), "q", 8, 8)
    assert found is not None
    assert found.values()[:, 3].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_compressed_tensors_writes(tmp_path: Path, bits: int, symmetric: bool) -> None:
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(1))
    layer = packing.quantised(weight, bits=bits, group=32, symmetric=symmetric, scales=torch.float32)
    middle = 2 ** (bits - 1)
    arguments = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=32)
    how = QuantizationScheme(targets=["Linear"], weights=arguments)
    state = {
        "weight": weight,
        "weight_scale": layer.scales.T.contiguous(),
        "weight_zero_point": torch.from_numpy(layer.zeros.T - middle).to(torch.int8).contiguous(),
    }
    written = PackedQuantizationCompressor.compress(state, how)
    expected = PackedQuantizationCompressor.decompress(written, how)["weight"]
    scheme = Scheme(
        method="compressed-tensors", packing="pack-quantized", bits=bits, group=32, symmetric=symmetric
    )
    found = read(written, tmp_path, scheme)
    assert torch.equal(found.values().T, expected)
    ours = packing.pack_quantized(layer, bits, zeros=not symmetric)
    assert ours.keys() == written.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in written.items())


def test_inputs_in_another_order_are_multiplied_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scheme = SCHEMES["gptq"]
    groups = np.random.default_rng(0).permutation(np.arange(INPUTS) // 64)
    expected = layer_of(scheme, groups=groups)
    checkpoint = stored(packed(expected, scheme), tmp_path, scheme)
    found = packed_layer(checkpoint, "q", INPUTS, OUTPUTS)
    assert found is not None
    assert torch.equal(found.values().T, expected.values)
    assert found.block() is None
    with caplog.at_level(logging.WARNING):
        assert kept_quantization(checkpoint, {"q": (INPUTS, OUTPUTS)}) is None
    assert "q and 0 more layers are stored in the bundle's element type" in caplog.text


def test_order_of_compressed_tensors(tmp_path: Path) -> None:
    """Each input's group, or -1 where neighbours share one."""
    scheme = SCHEMES["packed"]
    expected = layer_of(scheme)
    tensors = packing.pack_quantized(expected, 4, zeros=False, order=True)
    tensors["weight_g_idx"] = torch.full_like(tensors["weight_g_idx"], -1)
    found = read(tensors, tmp_path, scheme)
    assert torch.equal(found.values().T, expected.values)
    assert found.block() == 32


def test_zero_points_that_older_versions_did_not_pack(tmp_path: Path) -> None:
    scheme = SCHEMES["packed-zeros"]
    expected = layer_of(scheme)
    tensors = packed(expected, scheme)
    tensors["weight_zero_point"] = torch.from_numpy(expected.zeros.T - 128).to(torch.int8).contiguous()
    assert torch.equal(read(tensors, tmp_path, scheme).values().T, expected.values)


def damaged(tensors: packing.Tensors, fault: str) -> None:
    if fault == "missing":
        del tensors["qzeros"]
    elif fault == "shape":
        tensors["scales"] = tensors["scales"][:-1]
    elif fault == "order":
        tensors["g_idx"][0] = 3
    else:
        tensors["qzeros"][0, 0] = 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"has no tensor q.qzeros; is the checkpoint complete\?"),
        ("shape", r"q.scales in model.safetensors is \[2, 16\], the config asks for \[3, 16\]"),
        ("order", "q.g_idx names groups that q does not have"),
        ("zero", "q has other zero points than 8, though the config says symmetric"),
    ],
)
def test_damage(tmp_path: Path, fault: str, message: str) -> None:
    symmetric = Scheme(method="gptq", packing="gptq", bits=4, group=64, symmetric=True, zero_offset=1)
    tensors = packed(layer_of(symmetric), symmetric)
    damaged(tensors, fault)
    with pytest.raises(CheckpointError, match=message):
        read(tensors, tmp_path, symmetric).values()
