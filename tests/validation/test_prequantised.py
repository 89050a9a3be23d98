"""Checkpoints that are quantised already: built in their own bits, and checked against their own values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from star_export.build import BuildOptions, SpecOptions, build, resolve_sizes
from star_export.bundle import open_bundle
from star_export.checkpoint.shape import read_shape
from star_export.checkpoint.tensors import canonical_module
from star_export.engines import Runtime
from star_export.errors import CheckpointError, SettingsError
from star_export.graphs.quantize import dequantize
from star_export.parameters import weight_bytes
from star_export.validation.check import check_bundle
from star_export.validation.probes import make_probes
from tests import packing

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {
    "quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": True,
    "checkpoint_format": "gptq",
}  # fmt: skip
CHANNEL = packing.compressed(
    form="int-quantized", num_bits=8, symmetric=True, strategy="channel", group_size=None
)
PACKED = packing.compressed(
    form="pack-quantized", num_bits=4, symmetric=False, strategy="group", group_size=32
)


def as_awq(name: str, weight: torch.Tensor) -> tuple[packing.Layer, packing.Tensors]:
    layer = packing.quantised(weight, bits=4, group=32, symmetric=False)
    return layer, packing.awq(layer, 4)


def as_gptq(name: str, weight: torch.Tensor) -> tuple[packing.Layer, packing.Tensors]:
    """The output projections with their inputs in another order."""
    groups = np.arange(weight.shape[1]) // 64
    if "o_proj" in name:
        groups = np.random.default_rng(0).permutation(groups)
    layer = packing.quantised(weight, bits=4, group=64, symmetric=True, groups=groups)
    return layer, packing.gptq(layer, 4)


def as_channels(name: str, weight: torch.Tensor) -> tuple[packing.Layer, packing.Tensors]:
    layer = packing.quantised(weight, bits=8, group=None, symmetric=True, scales=torch.bfloat16)
    return layer, packing.int_quantized(layer, 8, zeros=False)


def as_packed(name: str, weight: torch.Tensor) -> tuple[packing.Layer, packing.Tensors]:
    layer = packing.quantised(weight, bits=4, group=32, symmetric=False)
    return layer, packing.pack_quantized(layer, 4, zeros=True)


CASES: dict[str, tuple[str, dict[str, Any], Any, str, int, str]] = {
    "awq": ("vicuna", AWQ, as_awq, "uint4", 32, "float32"),
    "gptq": ("gqa", GPTQ, as_gptq, "int4", 64, "float16"),
    "channel": ("onevision", CHANNEL, as_channels, "int8", 64, "float32"),
    "packed": ("next-mistral", PACKED, as_packed, "uint4", 32, "float32"),
}


def written(
    checkpoint: Callable[[str], Path], folder: Path, case: str
) -> tuple[Path, dict[str, packing.Layer]]:
    preset, config, pack, *_ = CASES[case]
    return folder / "q", packing.write_quantised(checkpoint(preset), folder / "q", config, pack)


def options(model: Path, output: Path, **given: Any) -> BuildOptions:
    sizes = {"keep": 8, "max_text_tokens": 128, "max_new_tokens": 8}
    return BuildOptions(model=str(model), output=output, **sizes | given)


@pytest.mark.parametrize("case", CASES)
def test_built_in_its_bits_and_checked(checkpoint: Callable[[str], Path], tmp_path: Path, case: str) -> None:
    model, layers = written(checkpoint, tmp_path, case)
    _, _, _, kind, block, dtype = CASES[case]
    build(options(model, tmp_path / "b", dtype=dtype, quantize_embedding=case == "packed"))
    how = open_bundle(tmp_path / "b", verify=True).spec.quantization
    assert how is not None
    assert (how.type, how.block, how.vision, how.embedding) == (kind, block, False, case == "packed")
    whole = [name for name in layers if case == "gptq" and "o_proj" in name]
    assert len(how.layers or ()) == len(layers) - len(whole)
    stored = load_file(tmp_path / "b/graphs/decoder.safetensors")
    for name, layer in layers.items():
        own = f"{canonical_module(name, 'llava')}.weight"
        if name in whole:
            np.testing.assert_array_equal(stored[own], layer.values.to(getattr(torch, dtype)).numpy())
            continue
        np.testing.assert_array_equal(held(stored, own, kind, layer.integers.shape), layer.values.T.numpy())
    shape = read_shape(str(model))
    sizes = {"keep": 8, "dtype": dtype, "quantize_embedding": case == "packed"}
    planned = weight_bytes(resolve_sizes(SpecOptions(model=str(model), **sizes), shape.model, shape))
    tensors = {name: tensor.nbytes for name, tensor in stored.items() if not name.startswith("rotary.")}
    assert planned.decoder == sum(tensors.values())
    report = check_bundle(tmp_path / "b", probes=make_probes(1), max_new_tokens=3, runtime=Runtime(threads=1))
    assert report.passed, report


def held(
    stored: dict[str, Any], name: str, kind: str, shape: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What a weight of a bundle is: its bytes, scales and zero points multiplied out."""

    def integers(tensor: Any, shape: tuple[int, ...]) -> torch.Tensor:
        if kind.endswith("8"):
            return torch.from_numpy(tensor.reshape(shape)).short()
        nibbles = np.stack([tensor & 15, tensor >> 4], -1).reshape(shape).astype(np.int16)
        return torch.from_numpy(nibbles if kind == "uint4" else (nibbles ^ 8) - 8)

    scale = torch.from_numpy(stored[f"{name}_scale"])
    zero = stored.get(f"{name}_zero_point")
    zeros = [] if zero is None else [integers(zero, tuple(scale.shape))]
    return dequantize(integers(stored[name], shape), scale, *zeros).numpy()


def test_it_is_not_quantised_again(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model, _ = written(checkpoint, tmp_path, "awq")
    for given in ({"quantize": "int4"}, {"quantize_vision": True}):
        with pytest.raises(SettingsError, match=r"quantised already \(awq, 4 bits\) and stays so; leave out"):
            build(options(model, tmp_path / "b", **given))
    assert not (tmp_path / "b").exists()


def test_a_part_that_is_missing(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    def pack(name: str, weight: torch.Tensor) -> tuple[packing.Layer, packing.Tensors]:
        layer, parts = as_awq(name, weight)
        if "layers.1.mlp.up_proj" in name:
            del parts["scales"]
        return layer, parts

    packing.write_quantised(checkpoint("vicuna"), tmp_path / "q", AWQ, pack)
    with pytest.raises(CheckpointError, match=r"no tensor language_model.layers.1.mlp.up_proj.scales"):
        build(options(tmp_path / "q", tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_a_config_of_other_groups(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    packing.write_quantised(checkpoint("vicuna"), tmp_path / "q", AWQ | {"group_size": 64}, as_awq)
    with pytest.raises(CheckpointError, match=r"qzeros in .* is \[2, 8\], the config asks for \[1, 8\]"):
        build(options(tmp_path / "q", tmp_path / "b"))
