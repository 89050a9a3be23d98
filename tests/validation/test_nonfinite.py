"""The first tensor with inf or NaN is found, and the advice given with it helps."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from star_export.build import BuildOptions, build
from star_export.bundle import open_bundle
from star_export.checkpoint.tensors import canonical_name
from star_export.validation.check import check_bundle
from star_export.validation.nonfinite import first_nonfinite
from star_export.validation.probes import make_probes
from star_export.validation.report import ParityReport


@dataclass(frozen=True)
class Overflow:
    """Factors on weights, each finite in float16, and where their product is not."""

    factors: Mapping[str, float]
    graph: str
    operator: str
    module: str
    layer: str | None
    hidden: bool


MLP = "language_model.layers.2.mlp"
ATTENTION = "language_model.layers.1.self_attn"
OVERFLOWS = {
    # Each projection fits, their product does not; the CPU multiplies in float32.
    "gated product": Overflow(
        {f"{MLP}.gate_proj": 400, f"{MLP}.up_proj": 400, f"{MLP}.down_proj": 1 / 160_000},
        "prefill", "Mul", MLP, MLP, True,
    ),
    # The residual stream itself, from this layer to the last norm.
    "residual stream": Overflow(
        {f"{MLP}.down_proj": 60_000}, "prefill", "MatMul", f"{MLP}.down_proj", MLP, False
    ),
    "projector": Overflow(
        {"multi_modal_projector.linear_1": 30_000, "multi_modal_projector.linear_2": 1 / 30_000},
        "vision", "MatMul", "multi_modal_projector.linear_1", "multi_modal_projector", True,
    ),
    # The caches hold the keys in the bundle's type: no layer in float32 helps.
    "keys": Overflow(
        {f"{ATTENTION}.k_proj": 40_000, f"{ATTENTION}.q_proj": 1 / 40_000},
        "prefill", "MatMul", f"{ATTENTION}.k_proj", None, False,
    ),
}  # fmt: skip


def scaled(source: Path, folder: Path, factors: Mapping[str, float]) -> Path:
    """The checkpoint with some weights and biases multiplied."""
    shutil.copytree(source, folder)
    hits = 0
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            for part, factor in factors.items():
                if part in canonical_name(name, "llava"):
                    tensors[name] *= factor
                    hits += 1
        save_file(tensors, path, metadata={"format": "pt"})
    assert hits >= len(factors)
    return folder


def checked(model: Path, folder: Path, *fp32_layers: str) -> ParityReport:
    options = BuildOptions(
        model=str(model), output=folder, max_text_tokens=64, max_new_tokens=8, dtype="float16",
        fp32_layers=fp32_layers,
    )  # fmt: skip
    build(options)
    return check_bundle(folder, probes=make_probes(1), max_new_tokens=2)


#: Each of these builds two bundles: the others are enough for every run.
SLOW = ("residual stream", "gated product", "projector")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OVERFLOWS]
)
def test_an_overflow_is_named_and_cured(checkpoint: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    case = OVERFLOWS[name]
    model = scaled(checkpoint("mha"), tmp_path / "model", case.factors)
    report = checked(model, tmp_path / "half")
    found = report.nonfinite
    assert found is not None
    assert (found.graph, found.operator, found.module) == (case.graph, case.operator, case.module)
    assert (found.hidden, report.passed) == (case.hidden, case.hidden)
    assert found.tensor
    if case.layer is None:
        assert found.remedy == "build with --dtype bfloat16"
        return
    assert found.remedy == f"build with --fp32-layers {case.layer}, or with --dtype bfloat16"
    cured = checked(model, tmp_path / "mixed", case.layer)
    assert cured.passed
    assert cured.nonfinite is None


def test_every_node_is_looked_at(bundle: Callable[..., Path]) -> None:
    """NaN in one input comes out at the first node that reads it."""
    opened = open_bundle(bundle("mha", dtype="float16"))
    feeds = {"pixel_values": np.zeros((1, 3, 96, 96), np.float16), "stage1_slots": np.arange(9)}
    assert first_nonfinite(opened, "vision", feeds, hidden=True) is None
    finite = first_nonfinite(opened, "vision", feeds)
    assert finite is not None
    assert (finite.tensor, finite.remedy) == ("", "in ONNX Runtime every tensor is finite, node by node")
    feeds["pixel_values"][0, 0, 5, 5] = np.nan
    found = first_nonfinite(opened, "vision", feeds)
    assert found is not None
    assert found.module == "vision_tower.embeddings.patch_embedding"


def test_bfloat16_cannot_be_run_again_here(bundle: Callable[..., Path]) -> None:
    opened = open_bundle(bundle("mha"))
    opened = replace(opened, spec=replace(opened.spec, dtype="bfloat16"))
    found = first_nonfinite(opened, "decode", {})
    assert found is not None
    assert "inf or NaN in the decode graph, first in its outputs; ONNX Runtime cannot run bfloat16" in str(
        found
    )
