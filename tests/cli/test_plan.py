"""``star-export plan``: what it prints, and every bad input in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Cli, Outcome, refused

MODEL = ("plan", "--model", "llava-1.5-7b")


@pytest.mark.parametrize(("keep", "saved"), [(288, "33.1"), (115, "49.8"), (58, "55.3"), (29, "58.0")])
def test_the_papers_points(cli: Cli, keep: int, saved: str) -> None:
    outcome = cli(*MODEL, "--keep", keep)
    assert outcome.code == 0
    [row] = [line for line in outcome.out.splitlines() if "their arithmetic" in line]
    assert row.split("│")[4].strip() == f"{saved} %"
    assert "llava-1.5-7b: built-in shape" in outcome.err


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (
            "llava-1.5-7b",
            "7.05 B parameters, 14.10 GB in float16 or bfloat16, 28.20 GB in float32, 7.60 GB in int8, "
            "4.36 GB in int4; here: float16",
        ),
        ("mini", "2.91 M parameters, 5.83 MB in float16 or bfloat16, 11.65 MB in float32, "),
    ],
)
def test_sizes_of_any_magnitude(cli: Cli, checkpoint: Callable[[str], Path], model: str, size: str) -> None:
    found = cli("plan", "--model", checkpoint(model) if model == "mini" else model)
    assert size in " ".join(found.out.split())


def test_the_picture(cli: Cli) -> None:
    lines = cli(*MODEL, "--schedule", "288@0,72@8,36@16").out.splitlines()
    bars = {line.split("█")[0].strip(): line.count("█") for line in lines if line.startswith("layers")}
    assert bars == {"layers 0-7   288": 20, "layers 8-15  72": 5, "layers 16-31 36": 2}


def test_estimates_are_called_so(cli: Cli) -> None:
    without, given = cli(*MODEL).out, cli(*MODEL, "--bandwidth", 1000, "--flops", 100).out
    assert "estimate" not in without
    assert "estimates, not measured: given figures at 0.6 of 1,000.0 GB/s and 100 TFLOP/s" in given
    rows = [line for line in given.splitlines() if "first token" in line or "per second" in line]
    assert len(rows) == 2
    assert all("estimate: " in row for row in rows)


def test_json(cli: Cli) -> None:
    data = json.loads(cli(*MODEL, "--keep", 115, "--gpu", "l4", "--json").out)
    assert data["planned"]["tokens"] == [518] * 14 + [115] * 18
    assert data["visual_flops_saved"] == pytest.approx(0.498, abs=5e-4)
    assert data["weight_bytes"]["float16"] == 2 * sum(
        data["parameters"][part] for part in ("vision", "decoder")
    )
    assert data["device"]["name"] == "l4"
    assert set(data["planned"]["estimate"]) == {"ttft", "tokens_per_second", "sequences"}
    assert json.loads(cli(*MODEL, "--json").out)["planned"]["estimate"] is None


def test_few_bits(cli: Cli, checkpoint: Callable[[str], Path]) -> None:
    shown = cli(*MODEL, "--quantize", "int4", "--quantize-block", 64).out
    assert "here: int4 in blocks of 64, otherwise float16" in " ".join(shown.split())
    given = (*MODEL, "--bandwidth", 1000, "--flops", 100, "--json")
    whole = json.loads(cli(*given).out)
    few = json.loads(cli(*given, "--quantize", "int4", "--quantize-vision").out)
    assert whole["quantization"] is None
    how = {"type": "int4", "block": 128, "vision": True, "embedding": False, "layers": None}
    assert few["quantization"] == how
    estimates = [found["planned"]["estimate"] for found in (few, whole)]
    assert 3 < estimates[0]["tokens_per_second"] / estimates[1]["tokens_per_second"] < 4
    assert estimates[0]["ttft"] == estimates[1]["ttft"]  # bound by arithmetic
    few_bits = ("--no-prune", "--quantize", "int8", "--quantize-vision", "--quantize-block", 64)
    small = cli("plan", "-m", checkpoint("feature-layers"), *few_bits)
    refused(small, "inputs, which blocks of 64 do not divide; give --quantize-block 32 or leave it out")


def test_proposals(cli: Cli) -> None:
    printed = cli(*MODEL, "--target", "flops=0.6", "--target", "kv=300MB")
    assert printed.code == 0
    rows = [line.split("│")[1].strip() for line in printed.out.splitlines() if "│" in line]
    found = json.loads(cli(*MODEL, "--target", "flops=0.6", "--target", "kv=300MB", "--json").out)
    assert found["targets"] == ["flops=0.6", "kv=300MB"]
    options = [proposal["options"] for proposal in found["proposals"]]
    assert rows == [f"--{name} {value}" for choice in options for name, value in choice.items()]
    for row, proposal in zip(rows, found["proposals"], strict=True):
        again = json.loads(cli(*MODEL, *row.split(), "--json").out)
        assert again == {name: value for name, value in proposal.items() if name != "options"}
        assert again["flops"] <= 0.6
        assert again["planned"]["kv_bytes"] <= 300e6


def test_a_page(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    shown = cli(*MODEL, "--keep", 115, "-o", page).out
    text = page.read_text()
    assert "layers 14-31 115" in shown
    assert "layers 14-31 115" in text
    assert "49.8 %" in text
    assert "http" not in text


def config_alone(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(checkpoint / "config.json", folder)
    return folder


def test_a_folder_that_holds_a_config_alone(
    cli: Cli, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = config_alone(checkpoint("mha"), tmp_path / "model")
    outcome = cli("plan", "-m", folder, "--keep", 100, "--schedule", "star", "--json")
    assert outcome.err == ""  # nor an empty line of a display that had nothing to show
    assert outcome.code == 0, outcome.err
    assert "built-in" not in outcome.err
    assert json.loads(outcome.out)["planned"]["tokens"] == [518] * 3 + [100] * 3


def test_a_quantised_checkpoint(cli: Cli, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = config_alone(checkpoint("mha"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for method, code, message in (
        ("awq", 0, "has no weights here to say which of its layers are in uint4 (awq); its decoder's"),
        ("fp8", 2, "quantization 'fp8' is not supported; supported: awq, gptq, compressed-tensors"),
    ):
        found = {"quant_method": method, "bits": 4, "group_size": 32}
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": found}))
        outcome = cli("plan", "-m", folder, "--keep", 100)
        assert outcome.code == code
        assert message in " ".join(outcome.err.split())
        assert "Traceback" not in outcome.err


def test_a_picture_in_tiles(cli: Cli) -> None:
    def tokens(*options: object) -> Any:
        return json.loads(cli("plan", "-m", "llava-onevision-qwen2-0.5b", "--json", *options).out)[
            "image_tokens"
        ]

    assert (tokens(), tokens("--image-size", "480x640")) == (2929, 2943)
    assert tokens("--image-size", "384x384") == 1485


@pytest.fixture
def call(cli: Cli) -> Callable[..., Outcome]:
    return lambda *options: cli(*MODEL, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image-size", "640"), "--image-size 640 is no size in pixels; expected WxH such as 640x480"),
        (("--image-size", "0x480"), "--image-size 0x480 is no size in pixels"),
        (("--gpu", "l41"), "--gpu l41 is not known; did you mean l4?"),
        (("--gpu", "l4", "--flops", 3), "give either --gpu or --flops, not both"),
        (("--bandwidth", 3), "--bandwidth needs --flops beside it"),
        (("--gpu", "l4", "--dtype", "float32"), "--dtype float32 is none of l4's figures"),
        (("--efficiency", 0), "--efficiency must be above 0 and at most 1, got 0"),
        (("--target", "speed=3"), "--target speed=3 limits nothing that is known; expected flops=0.3"),
        (("--target", "kv=200"), "--target kv=200 has no number in a known unit"),
        (("--target", "flops=0.01"), "--target flops=0.01 cannot be met: the share of the"),
        (("--target", "ttft=150ms"), "--target ttft=150ms is about time; give --gpu, or"),
        (("--target", "flops=0.5", "--keep", 64), "--keep has no meaning with --target"),
        (("--target", "flops=0.5", "--no-prune"), "--prune has no meaning with --target"),
        (("--schedule", "64@0,100@14"), "--schedule 64@0,100@14: stage 2 keeps up to 100 tokens"),
        (("--schedule", "64@0,10@32"), "10@32 is outside; this decoder's 32 layers"),
        (("--stage1", "nearest"), "is no score of this stage"),
        (("--prune-layer", 0), "--prune-layer must be from 1 to 31"),
        (("--keep", 600), "--keep 600 is not below the 518 tokens that stage 1 keeps"),
        (("--text-tokens", 513), "--text-tokens 513 must be from 1 to 512; for more raise --max-text-tokens"),
        (("--output", "plan.png"), "--output plan.png must end in .html"),
        (("--output", "nowhere/plan.html"), "--output nowhere/plan.html cannot be written"),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[..., Outcome], options: tuple[object, ...], message: str) -> None:
    refused(call(*options), message)


def test_no_such_model(cli: Cli) -> None:
    refused(cli("plan", "-m", "llava-1.5-7"), "is called llava-1.5-7; did you mean llava-1.5-7b?")
