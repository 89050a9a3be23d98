"""`build --calibrate`: what it makes is nearer to the checkpoint than rounding, and what it refuses."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from star_export.build import BuildOptions, build
from star_export.bundle import open_bundle
from star_export.calibrating import Example, read_examples
from star_export.errors import InputError, PlatformError, SettingsError, StarExportError
from star_export.evaluation.shapes import Shapes
from star_export.graphs.quantize import dequantize, quantize
from star_export.validation.loading import load_unpacked
from tests import packing

PICTURES, ASKED = 32, 40


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the task that the mini model has learnt, with its questions."""
    folder, task = tmp_path_factory.mktemp("pictures"), Shapes()
    lines = []
    for index in range(PICTURES):
        example = task.example("train", 1, index)
        assert example.image is not None
        example.image.save(folder / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "question": example.question}))
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


def options(model: Path, output: Path, **given: Any) -> BuildOptions:
    sizes = {"prune": False, "max_text_tokens": 128, "max_new_tokens": 8, "quantize": "int4"}
    return BuildOptions(model=str(model), output=output, **sizes | given)


@torch.no_grad()
def text_logits(model: Any, processor: Any) -> list[torch.Tensor]:
    """Of the last words of some questions; the answer's own is so certain that nothing moves it."""
    found = []
    for index in range(ASKED):
        example = Shapes().example("test", 0, index)
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
        encoded = processor(images=example.image, text=prompt, return_tensors="pt")
        found.append(model(**encoded).logits[0, -8:].log_softmax(-1))
    return found


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llmcompressor") is None, reason="needs the calibrate extra")
def test_it_is_nearer_to_the_checkpoint_than_rounding(
    checkpoint: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    source = checkpoint("mini")
    build(options(source, tmp_path / "bundle", calibrate=pictures))
    how = open_bundle(tmp_path / "bundle").spec.quantization
    assert how is not None
    assert (how.type, how.block, len(how.layers or ())) == ("int4", 128, 8 * 7)
    processor = AutoProcessor.from_pretrained(source)
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).eval()
    expected = text_logits(model, processor)
    calibrated = load_unpacked(tmp_path / "bundle-calibrated", dtype=torch.float32, attention="sdpa")
    for name, module in model.named_modules():
        if "language_model" in name and isinstance(module, torch.nn.Linear):
            parts = quantize(module.weight.detach().T, "int4", 128, torch.float32)
            module.weight = torch.nn.Parameter(dequantize(*parts).T)
    near, far = (
        np.mean(
            [
                float((first.exp() * (first - second)).sum(-1).mean())
                for first, second in zip(expected, text_logits(each, processor), strict=True)
            ]
        )
        for each in (calibrated, model)
    )
    assert near < 0.9 * far, (near, far)


@pytest.mark.parametrize(
    ("given", "files", "message"),
    [
        ({}, {}, "calibrate=.* holds no pictures .*; give some, or lines of"),
        ({}, {"a.png": b""}, "a.png is not a picture that Pillow can read"),
        ({}, {"prompts.jsonl": b"{}"}, "prompts.jsonl line 1 is no picture and question"),
        ({}, {"prompts.jsonl": b'{"image": "b.png"}'}, "b.png does not exist"),
        ({"quantize": "int8"}, {}, "calibrate needs quantize=int4 or uint4, got int8; 8 bits lose next to"),
        ({"quantize": None}, {}, "calibrate needs quantize=int4 or uint4, got no type"),
        ({"quantize_vision": True}, {}, "calibrate leaves the vision tower whole; leave out quantize_vision"),
    ],
)
def test_refused(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    files: dict[str, bytes],
    message: str,
) -> None:
    monkeypatch.setattr("star_export.calibrating.find_spec", lambda name: name)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(StarExportError, match=message) as refusal:
        build(options(checkpoint("mini"), tmp_path / "b", calibrate=folder, **given))
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_quantised_checkpoint_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    def pack(name: str, weight: Any) -> tuple[packing.Layer, packing.Tensors]:
        layer = packing.quantised(weight, bits=4, group=32, symmetric=False)
        return layer, packing.awq(layer, 4)

    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    packing.write_quantised(checkpoint("vicuna"), tmp_path / "q", config, pack)
    for kind in (None, "int4"):
        with pytest.raises(SettingsError, match="quantised already"):
            build(options(tmp_path / "q", tmp_path / "b", quantize=kind, calibrate=tmp_path))


def test_the_library_is_missing(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("star_export.calibrating.find_spec", lambda _: None)
    with pytest.raises(PlatformError, match=r"pip install 'star-export\[calibrate\]'"):
        build(options(checkpoint("mini"), tmp_path / "b", calibrate=tmp_path))


def test_a_copy_that_is_there_is_not_replaced(
    checkpoint: Callable[[str], Path], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a folder of something else, with ``overwrite``."""
    monkeypatch.setattr("star_export.calibrating.find_spec", lambda name: name)
    (tmp_path / "b-calibrated").mkdir()
    for overwrite in (False, True):
        with pytest.raises(SettingsError, match=r"b-calibrated exists; build from it with model=.*b-calib"):
            build(options(checkpoint("mini"), tmp_path / "b", calibrate=pictures, overwrite=overwrite))


def test_pictures_without_questions(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert read_examples(tmp_path) == [Example("a.jpg"), Example("b.PNG")]
    with pytest.raises(InputError, match="nowhere is no folder"):
        read_examples(tmp_path / "nowhere")
