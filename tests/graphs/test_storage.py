"""A weight may lie in a file as several tensors of other shapes and types than it has in the graph.

No bundle has such a weight yet; the storage of these tests stands for one that quantises.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file

from star_export.build import BuildOptions, resolve_spec
from star_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from star_export.contract import DECODE
from star_export.dtypes import DTYPES
from star_export.graphs import weights
from star_export.graphs.export import fake_module
from star_export.graphs.passes import AttachWeights
from star_export.graphs.weights import StoredTensor, Weight, plan_weights, write_weights
from star_export.specs import ExportSpec

QUANTISED = "language_model.layers.1.mlp.up_proj.weight"
PARTS = {"packed": "uint8", "scales": "float16", "zero_points": "float32"}
DEQUANTISE = """
<ir_version: 10, opset_import: ["": 24]>
dequantise () => (float16[i, o] y) {
    values = Cast <to = 10> (w_packed)
    zero = Cast <to = 10> (w_zero_points)
    centred = Sub (values, zero)
    y = Mul (centred, w_scales)
}
"""


def parts(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Eight bits a value, one scale and zero point for each of the ``out`` columns of ``[in, out]``."""
    values = checkpoint.tensor(QUANTISED).T
    low, high = values.min(0).values, values.max(0).values
    scales = ((high - low) / 255).half()
    zero_points = (-low / scales.float()).round()
    packed = (values / scales.float() + zero_points).round().clamp(0, 255)
    return {"packed": packed.to(torch.uint8), "scales": scales, "zero_points": zero_points}


def quantised(weight: Weight, checkpoint: Checkpoint) -> tuple[StoredTensor, ...]:
    shapes = {"packed": weight.shape[::-1], "scales": weight.shape[:1], "zero_points": weight.shape[:1]}
    return tuple(
        StoredTensor(
            name=f"{weight.name}.{part}",
            shape=shapes[part],
            dtype=dtype,
            load=lambda part=part: parts(checkpoint)[part],
        )
        for part, dtype in PARTS.items()
    )


@pytest.fixture
def source(checkpoint: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(str(checkpoint("mha")))


@pytest.fixture
def plan(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> list[StoredTensor]:
    """Of the decoder in float16, with one weight in another storage."""
    chosen = weights.store

    def store(weight: Weight, checkpoint: Checkpoint, spec: ExportSpec) -> tuple[StoredTensor, ...]:
        other = weight.name == QUANTISED
        return quantised(weight, checkpoint) if other else chosen(weight, checkpoint, spec)

    monkeypatch.setattr(weights, "store", store)
    options = BuildOptions(model=str(source.folder), output=Path("unused"), dtype="float16")
    spec = resolve_spec(options, source)
    return plan_weights(fake_module(DECODE, spec), source, spec)


def test_every_tensor_of_a_storage_is_in_the_file(
    plan: list[StoredTensor], source: Checkpoint, tmp_path: Path
) -> None:
    path, done = tmp_path / "decoder.safetensors", []
    written = write_weights(path, plan, done.append)
    found, expected = load_file(path), parts(source)
    assert QUANTISED not in found
    for part, dtype in PARTS.items():
        tensor = found[f"{QUANTISED}.{part}"]
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(tensor, expected[part])
    assert len(found) == len(plan) == len(done)
    others = {tensor.dtype for name, tensor in found.items() if not name.startswith(QUANTISED)}
    assert others == {torch.float16}
    assert all(s.offset % DTYPES[s.dtype].itemsize == 0 for s in written.slices.values())


def test_a_graph_reads_them_by_their_stored_names(
    plan: list[StoredTensor], source: Checkpoint, tmp_path: Path
) -> None:
    written = write_weights(tmp_path / "decoder.safetensors", plan, lambda _: None)
    model = ir.from_onnx_text(DEQUANTISE)
    for value in {value for node in model.graph for value in node.inputs if value.producer() is None}:
        value.name = value.name.replace("w_", f"{QUANTISED}.")
        stored = written.external_tensor(value.name)
        value.shape, value.dtype = stored.shape, stored.dtype
        model.graph.initializers.add(value)
    AttachWeights(written)(model)
    ir.save(model, tmp_path / "dequantise.onnx")
    (found,) = ort.InferenceSession(tmp_path / "dequantise.onnx").run(None, {})
    expected = source.tensor(QUANTISED).T.numpy()
    scales = parts(source)["scales"].numpy()
    assert (np.abs(found - expected) <= 0.6 * scales).all()
