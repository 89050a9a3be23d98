"""What configs say of quantised checkpoints: read, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.scheme import Scheme, read_scheme
from star_export.checkpoint.shape import read_shape
from star_export.errors import CheckpointError
from tests.packing import compressed

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
PACKED = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 128}


def folder_with(folder: Path, config: dict[str, Any], **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in {"config": {"model_type": "llava", **config}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AWQ, Scheme(method="awq", packing="awq", bits=4, group=128, symmetric=False)),
        (
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"},
            Scheme(method="awq", packing="awq", bits=4, group=64, symmetric=False),
        ),
        (
            GPTQ,
            Scheme(method="gptq", packing="gptq", bits=4, group=128, symmetric=True, zero_offset=1),
        ),
        (
            GPTQ | {"checkpoint_format": "gptq_v2", "desc_act": True, "group_size": -1, "sym": False},
            Scheme(
                method="gptq", packing="gptq", bits=4, group=None, symmetric=False, zero_offset=0,
                reordered=True,
            ),
        ),
        (
            compressed(form="pack-quantized", **PACKED),
            Scheme(
                method="compressed-tensors", packing="pack-quantized", bits=4, group=128, symmetric=True
            ),
        ),
        (
            compressed(form="int-quantized", num_bits=8, symmetric=True, strategy="channel"),
            Scheme(
                method="compressed-tensors", packing="int-quantized", bits=8, group=None, symmetric=True
            ),
        ),
    ],
)  # fmt: skip
def test_configs(tmp_path: Path, config: dict[str, Any], expected: Scheme) -> None:
    assert read_scheme(folder_with(tmp_path, {"quantization_config": config})) == expected
    assert read_scheme(folder_with(tmp_path, {"text_config": {"quantization_config": config}})) == expected


def test_none(tmp_path: Path) -> None:
    assert read_scheme(folder_with(tmp_path, {})) is None


@pytest.mark.parametrize(
    ("name", "content", "packing"),
    [
        ("quantize_config", {"bits": 8, "group_size": -1, "sym": False}, "gptq"),
        ("quant_config", {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}, "awq"),
    ],
)
def test_files_of_older_versions(tmp_path: Path, name: str, content: dict[str, Any], packing: str) -> None:
    scheme = read_scheme(folder_with(tmp_path, {}, **{name: content}))
    assert scheme is not None
    assert scheme.packing == packing


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(
            ({"quant_method": name}, f"'{name}' is not supported; supported: awq, gptq, compressed-tensors")
            for name in ("fp8", "bitsandbytes", "hqq", "mxfp4", "nvfp4", "quanto", "eetq", "auto-round")
        ),
        ({"load_in_4bit": True}, "quantization 'bitsandbytes' is not supported"),
        (AWQ | {"version": "gemv"}, "AWQ version 'gemv' is not supported; supported: gemm"),
        (AWQ | {"bits": 3}, "AWQ bits 3 is not supported; supported: 4"),
        (GPTQ | {"bits": 3}, "GPTQ bits 3 is not supported; supported: 4, 8"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported"),
        (GPTQ | {"is_marlin_format": True}, "checkpoint_format 'marlin' is not supported"),
        (GPTQ | {"group_size": "x"}, "GPTQ group_size must be -1 or at least 1, found 'x'"),
        (compressed(form="nvfp4-pack-quantized", **PACKED), "format 'nvfp4-pack-quantized' is not supported"),
        (compressed(form="float-quantized", **PACKED), "format 'float-quantized' is not supported"),
        (compressed(form="int-quantized", **PACKED | {"type": "float"}), "type 'float' is not supported"),
        (compressed(form="int-quantized", **PACKED | {"strategy": "tensor"}), "strategy 'tensor' is not"),
        (compressed(form="int-quantized", **PACKED | {"num_bits": 2}), "num_bits 2 is not supported"),
        ({"quant_method": "compressed-tensors", "config_groups": {"W4A16": ["Linear"]}}, "no readable"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "0 kinds of weights, of which one"),
        ({"quant_method": "compressed-tensors"}, "no readable quantization_config: KeyError"),
        ("int8", "no readable quantization_config: found 'int8'"),
    ],
)
def test_refused(checkpoint: Callable[[str], Path], tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as refusal:
        read_scheme(folder_with(tmp_path, {"quantization_config": config}))
    assert "\n" not in str(refusal.value)


def test_refused_before_anything_is_read(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("vicuna"), tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    for read in (open_checkpoint, read_shape):
        with pytest.raises(CheckpointError, match="quantization 'fp8' is not supported"):
            read(str(folder))
