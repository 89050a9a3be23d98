"""Weights in few bits: the arithmetic against its formula in loops, and what the graphs hold."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from star_export.build import BuildOptions, build
from star_export.bundle import open_bundle
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.contract import DECODE, PREFILL, VISION
from star_export.errors import SettingsError
from star_export.graphs.quantize import dequantize, packed, quantize
from star_export.specs import QUANTIZED_TYPES, Quantization, resolve_quantization

BLOCK = 32


def by_hand(column: list[float], kind: str) -> list[float]:
    """What a block of one column becomes, element by element."""
    levels, low, high = 2 ** int(kind[-1]), min(*column, 0.0), max(*column, 0.0)
    if kind.startswith("u"):
        scale = (high - low) / (levels - 1) or 1.0
        zero = round(-low / scale)
        return [(min(max(round(w / scale + zero), 0), levels - 1) - zero) * scale for w in column]
    scale = max(high / (levels // 2 - 1), -low / (levels // 2)) or 1.0
    return [min(max(round(w / scale), -levels // 2), levels // 2 - 1) * scale for w in column]


@pytest.mark.parametrize("kind", QUANTIZED_TYPES)
def test_the_arithmetic(kind: Any) -> None:
    weight = torch.randn(3 * BLOCK, 5, generator=torch.Generator().manual_seed(0))
    weight[:BLOCK, 0], weight[BLOCK : 2 * BLOCK, 1] = 0.0, weight[BLOCK : 2 * BLOCK, 1].abs()
    integers, scale, *zero = quantize(weight, kind, BLOCK, torch.float32)
    assert (scale > 0).all()  # TensorRT takes no others
    found = dequantize(integers, scale, *zero)
    for row in range(0, 3 * BLOCK, BLOCK):
        for column in range(5):
            expected = by_hand(weight[row : row + BLOCK, column].tolist(), kind)
            torch.testing.assert_close(found[row : row + BLOCK, column], torch.tensor(expected))
    assert (found[:BLOCK, 0] == 0).all()
    assert ((found - weight).abs() <= 0.51 * scale.repeat_interleave(BLOCK, 0) + 1e-6).all()


@pytest.mark.parametrize("kind", QUANTIZED_TYPES)
def test_columns_are_taken_in_parts(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(2 * BLOCK, 7, generator=torch.Generator().manual_seed(2))
    whole = quantize(weight, kind, BLOCK, torch.float16)
    for size in (1, 2 * BLOCK * 3):  # one by one, and by threes with one left
        monkeypatch.setattr("star_export.graphs.quantize._AT_ONCE", size)
        for found, expected in zip(quantize(weight, kind, BLOCK, torch.float16), whole, strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_float16_scales_are_those_that_the_integers_are_made_for() -> None:
    weight = torch.randn(BLOCK, 4, generator=torch.Generator().manual_seed(1))
    integers, scale = quantize(weight, "int8", BLOCK, torch.float16)
    assert scale.dtype == torch.float16
    assert ((dequantize(integers, scale) - weight).abs() <= 0.51 * scale.float()).all()


@pytest.mark.parametrize(("kind", "low"), [("int4", -8), ("uint4", 0)])
def test_two_share_a_byte_as_in_onnx(kind: str, low: int) -> None:
    values = torch.arange(15).reshape(3, 5).short() + low
    tensor = helper.make_tensor(
        "w", getattr(TensorProto, kind.upper()), [3, 5], bytes(packed(values, kind).numpy()), raw=True
    )
    assert numpy_helper.to_array(tensor).astype(int).tolist() == values.tolist()


@pytest.mark.parametrize("kind", QUANTIZED_TYPES)
def test_the_graphs_hold_what_the_checkpoint_becomes(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], kind: Any
) -> None:
    folder = bundle("next-mistral", quantize=kind)
    spec = open_bundle(folder, verify=True).spec
    wide = "uint8" if kind.startswith("u") else "int8"
    assert spec.quantization == Quantization(type=kind, block=BLOCK, vision=True)
    stored = load_file(folder / "graphs/decoder.safetensors")
    source = open_checkpoint(str(checkpoint("next-mistral")))
    for name, own in (("language_model.layers.1.mlp.up_proj.weight", kind), ("lm_head.weight", wide)):
        integers, scale, *zero = quantize(source.tensor(name).T, own, BLOCK, torch.float32)
        assert stored[name].tobytes() == packed(integers, own).numpy().tobytes()
        np.testing.assert_array_equal(stored[f"{name}_scale"], scale.numpy())
        assert (f"{name}_zero_point" in stored) == bool(zero)
    for graph, layers in ((VISION, 2 * 6 + 2), (DECODE, 3 * 7 + 1)):
        model = onnx.load(folder / f"graphs/{graph}.onnx", load_external_data=False)
        onnx.checker.check_model(str(folder / f"graphs/{graph}.onnx"))
        assert Counter(node.op_type for node in model.graph.node)["DequantizeLinear"] == layers
    assert stored["language_model.embed_tokens.weight"].dtype == np.float32


def test_rows_of_tokens(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The table of integers, gathered before it is multiplied out; the tied head is stored by itself."""
    build(
        BuildOptions(
            model=str(checkpoint("gqa")), output=tmp_path / "b", keep=64, max_text_tokens=16,
            max_new_tokens=4, dtype="float16", quantize="uint4", quantize_block=BLOCK,
            quantize_embedding=True,
        )
    )  # fmt: skip
    assert open_bundle(tmp_path / "b").spec.quantization == Quantization(
        type="uint4", block=BLOCK, embedding=True
    )
    stored = load_file(tmp_path / "b/graphs/decoder.safetensors")
    name = "language_model.embed_tokens.weight"
    table = open_checkpoint(str(checkpoint("gqa"))).tensor(name)
    assert stored[name].dtype == np.int8
    assert stored[f"{name}_scale"].shape == (table.shape[0], table.shape[1] // BLOCK)
    for row in (0, 7, 511):
        scales = torch.from_numpy(stored[f"{name}_scale"][row].astype(np.float32)).repeat_interleave(BLOCK)
        found = torch.from_numpy(stored[name][row].astype(np.float32)) * scales
        assert ((found - table[row]).abs() <= 0.51 * scales).all()
    assert stored["lm_head.weight"].dtype == np.uint8
    assert stored["lm_head.weight"].shape == table.shape[::-1]
    for graph in (PREFILL, DECODE):
        model = onnx.load(tmp_path / f"b/graphs/{graph}.onnx", load_external_data=False)
        tables = [node for node in model.graph.node if node.op_type == "Gather" and name in node.input]
        assert len(tables) == 1
        users = [node.op_type for node in model.graph.node if tables[0].output[0] in node.input]
        assert users == ["DequantizeLinear"]


def test_layers_that_stay_whole(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Those in ``fp32_layers`` and, of "onevision", a tower of 144 channels, which no block divides."""
    how = Quantization(type="int4", block=BLOCK, vision=True)
    assert [how.of(name, 144) for name in ("vision_tower.encoder.layers.0.mlp.fc1", "lm_head")] == [
        None,
        None,
    ]
    build(
        BuildOptions(
            model=str(checkpoint("mha")), output=tmp_path / "b", keep=64, max_text_tokens=16,
            max_new_tokens=4, dtype="float16", quantize="int4", fp32_layers=("lm_head",),
        )
    )  # fmt: skip
    stored = load_file(tmp_path / "b/graphs/decoder.safetensors")
    assert stored["lm_head.weight"].dtype == np.float32
    assert stored["language_model.layers.0.mlp.up_proj.weight"].dtype == np.uint8
    assert (
        load_file(tmp_path / "b/graphs/vision.safetensors")["multi_modal_projector.linear_1.weight"].dtype
        == np.float16
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int5"}, "quantize must be int4, uint4, int8, uint8, got int5"),
        ({"quantize": "int4", "quantize_block": 16}, "quantize_block must be 32, 64, 128, got 16"),
        ({"quantize": "fp8"}, "got fp8: its engines would run on sm89 and newer alone"),
        ({"quantize": "nvfp4"}, "got nvfp4: its engines would run on sm120 and newer alone"),
        ({"quantize_vision": True}, "quantize_vision=True needs quantize=int4"),
        ({"quantize_embedding": True}, "quantize_embedding=True needs quantize=int4"),
        (
            {"quantize": "int4", "quantize_block": 128},
            "has 64 inputs, which blocks of 128 do not divide; give quantize_block=64 or leave it out",
        ),
    ],
)
def test_settings_that_are_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        build(BuildOptions(model=str(checkpoint("vicuna")), output=tmp_path / "b", keep=8, **options))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("widths", "vision", "block"),
    [
        ((1024, 4096, 11008), True, 128),
        ((1152, 4304, 896), True, 128),  # no block divides 4304: that layer stays whole
        ((64, 192, 256), True, 64),
        ((96, 128, 256), True, 32),
        ((96, 128, 256), False, 128),  # the tower's are whole
    ],
)
def test_the_block_is_the_largest_that_divides_every_layer(
    widths: tuple[int, int, int], vision: bool, block: int
) -> None:
    names = ("vision_tower.layers.0.fc1", "language_model.layers.0.mlp.up_proj", "lm_head")
    inputs = dict(zip(names, widths, strict=True))
    how = resolve_quantization("int4", block=None, vision=vision, embedding=False, inputs=inputs)
    assert how is not None
    assert how.block == block


def test_nothing_is_quantised_by_default() -> None:
    assert resolve_quantization(None, block=None, vision=False, embedding=False, inputs={}) is None
