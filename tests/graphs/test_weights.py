"""Weights files: layout, conversion, and the tables that are computed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from star_export.build import BuildOptions, resolve_spec
from star_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from star_export.contract import DECODE, VISION
from star_export.errors import CheckpointError
from star_export.files import sha256
from star_export.graphs.export import fake_module
from star_export.graphs.weights import StoredTensor, plan_weights, weights_bytes, write_weights
from star_export.specs import DType, ExportSpec
from tests.shapes import WIDE

TENSORS = {
    "bias": torch.linspace(-3, 3, 7),
    "long": torch.arange(2500 * 3, dtype=torch.float32).view(2500, 3) / 4096,  # more than one block
    "transposed": torch.arange(15, dtype=torch.float32).view(3, 5).T,
    "from_bfloat16": torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).bfloat16(),
}


def planned(dtype: DType, **tensors: torch.Tensor) -> list[StoredTensor]:
    return [
        StoredTensor(name=name, shape=tuple(t.shape), dtype=dtype, load=lambda t=t: t)
        for name, t in tensors.items()
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_written_files_are_safetensors(tmp_path: Path, dtype: DType) -> None:
    path, done = tmp_path / "w.safetensors", []
    plan = planned(dtype, **TENSORS)
    written = write_weights(path, plan, done.append)
    expected = {name: tensor.to(getattr(torch, dtype)) for name, tensor in TENSORS.items()}
    found = load_file(path)
    assert list(written.slices) == list(TENSORS)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert done == [tensor.nbytes for tensor in expected.values()]
    assert weights_bytes(plan) == sum(done)
    assert written.sha256 == sha256(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_slices_hold_the_tensors_bytes(tmp_path: Path, dtype: DType) -> None:
    path = tmp_path / "w.safetensors"
    written = write_weights(path, planned(dtype, **TENSORS), lambda _: None)
    content = path.read_bytes()
    assert min(s.offset for s in written.slices.values()) % 4096 == 0
    for name, where in written.slices.items():
        expected = TENSORS[name].to(getattr(torch, dtype)).contiguous()
        assert (
            content[where.offset : where.offset + where.length]
            == expected.view(torch.uint8).numpy().tobytes()
        )
        assert where.shape == tuple(expected.shape)
    assert len(content) == max(s.offset + s.length for s in written.slices.values())


def test_the_data_starts_at_a_page_for_any_header_length(tmp_path: Path) -> None:
    for length in (1, 2, 3, 4000, 4090, 9000):
        path = tmp_path / str(length)
        written = write_weights(path, planned("float32", **{"n" * length: torch.ones(3)}), lambda _: None)
        assert written.slices["n" * length].offset % 4096 == 0
        assert torch.equal(load_file(path)["n" * length], torch.ones(3))


@pytest.mark.parametrize("value", [1e6, -1e6, float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 2000])
def test_values_that_float16_cannot_hold(tmp_path: Path, value: float, row: int) -> None:
    tensor = torch.zeros(2001, 2)
    tensor[row, 1] = value
    message = "a.w has values that float16 cannot hold; give fp32_layers=a, or another dtype"
    with pytest.raises(CheckpointError, match=message):
        write_weights(tmp_path / "half", planned("float16", **{"a.w": tensor}), lambda _: None)
    write_weights(tmp_path / "full", planned("float32", w=tensor), lambda _: None)
    assert torch.equal(load_file(tmp_path / "full")["w"].nan_to_num(), tensor.nan_to_num())


def resolved(folder: Path) -> tuple[Checkpoint, ExportSpec]:
    source = open_checkpoint(str(folder))
    return source, resolve_spec(BuildOptions(model=str(folder), output=Path("unused")), source)


ROPES: dict[str, dict[str, float]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 512},
}


@pytest.mark.parametrize("rope_type", ROPES)
def test_rotary_tables_are_transformers(
    checkpoint: Callable[[str], Path], tmp_path: Path, rope_type: str
) -> None:
    folder = shutil.copytree(checkpoint("mha"), tmp_path / "copy")
    stored = json.loads((folder / "config.json").read_text())
    stored["text_config"]["rope_parameters"] = {
        "rope_type": rope_type,
        "rope_theta": 10000.0,
        **ROPES[rope_type],
    }
    (folder / "config.json").write_text(json.dumps(stored))
    source, spec = resolved(folder)
    config = AutoConfig.from_pretrained(source.folder).text_config
    assert config.rope_parameters["rope_type"] == rope_type
    positions = torch.arange(spec.groups[0].capacity)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    half = spec.model.text.head_dim // 2  # transformers repeats each angle for both halves
    tables = {w.name: w.load() for w in plan_weights(fake_module(DECODE, spec), source, spec)[-2:]}
    torch.testing.assert_close(tables["rotary.cos"], cos[0, :, :half], rtol=0, atol=1e-6)
    torch.testing.assert_close(tables["rotary.sin"], sin[0, :, :half], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "linear", "factor": 0}, "give frequencies that are not finite"),
        ({"rope_type": "linear", "factor": "four"}, "give no frequencies"),
        ({"rope_type": "default", "rope_theta": "ten"}, "give no frequencies"),
    ],
)
def test_rope_parameters_that_give_no_frequencies(
    checkpoint: Callable[[str], Path], rope: dict[str, object], message: str
) -> None:
    source, spec = resolved(checkpoint("mha"))
    text = replace(spec.model.text, rope_parameters={"rope_theta": 1e4, **rope})
    damaged = replace(spec, model=replace(spec.model, text=text))
    table = plan_weights(fake_module(DECODE, damaged), source, damaged)[-1]
    with pytest.raises(CheckpointError, match=message):
        table.load()


def test_layers_kept_in_float32_are_exact(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path]
) -> None:
    stored = load_file(bundle("mha", dtype="float16", fp32_layers=WIDE) / "graphs" / "decoder.safetensors")
    source = open_checkpoint(str(checkpoint("mha")))
    wide = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert wide == {name for name in stored if name.startswith(tuple(f"{module}." for module in WIDE))}
    for name in wide:
        assert torch.equal(stored[name], source.tensor(name))
    assert {t.dtype for n, t in stored.items() if n not in wide} == {torch.float16}


def test_wide_weights_lie_at_multiples_of_their_size(bundle: Callable[..., Path]) -> None:
    folder = bundle("mha", dtype="float16", fp32_layers=WIDE)
    content = (folder / "graphs" / "decoder.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    del header["__metadata__"]
    assert {entry["data_offsets"][0] % 4 for entry in header.values() if entry["dtype"] == "F32"} == {0}


@pytest.mark.parametrize("graph", [VISION, DECODE])
def test_a_missing_tensor(checkpoint: Callable[[str], Path], graph: str) -> None:
    source, spec = resolved(checkpoint("mha"))
    module = fake_module(graph, spec)
    for name in (next(iter(module.state_dict())), [w for w in module.state_dict() if "mlp" in w][-1]):
        rest = {key: value for key, value in source.tensors.items() if key != name}
        with pytest.raises(CheckpointError, match=rf"has no tensor {name}"):
            plan_weights(module, replace(source, tensors=rest), spec)


def test_a_tensor_of_another_shape(checkpoint: Callable[[str], Path]) -> None:
    source, spec = resolved(checkpoint("mha"))
    name = "language_model.layers.3.mlp.up_proj.weight"
    path, stored, shape = source.tensors[name]
    changed = {**source.tensors, name: (path, stored, shape[::-1])}
    with pytest.raises(CheckpointError, match=r"is \[64, 160\], the config asks for \[160, 64\]"):
        plan_weights(fake_module(DECODE, spec), replace(source, tensors=changed), spec)


@pytest.mark.parametrize(
    ("options", "apart"),
    [
        ({}, False),
        ({"fp32_layers": ("lm_head",)}, True),
        ({"fp32_layers": ("lm_head", "language_model.embed_tokens")}, False),
        ({"quantize": "int4"}, True),
    ],
)
def test_a_tied_head_is_stored_once_where_it_can(
    checkpoint: Callable[[str], Path], options: dict[str, Any], apart: bool
) -> None:
    source = open_checkpoint(str(checkpoint("gqa")))
    assert source.model.text.tie_word_embeddings
    build = BuildOptions(model="gqa", output=Path("unused"), dtype="float16", **options)
    spec = resolve_spec(build, source)
    stored = {tensor.name for tensor in plan_weights(fake_module(DECODE, spec), source, spec)}
    assert ("lm_head.weight" in stored) == apart
    assert "language_model.embed_tokens.weight" in stored
