import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.shapes import WIDE

from .conftest import refused

BundleOf = Callable[..., Path]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; import star_export.cli.commands; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "star_export.cli.build" in loaded
    assert not loaded & {"torch", "transformers", "onnxruntime", "numpy", "onnx", "PIL", "tokenizers"}


@pytest.mark.parametrize("command", ["build", "run", "chat", "check", "show", "inspect", "doctor", "bench"])
def test_help_shows_an_example(cli: Any, command: str) -> None:
    outcome = cli(command, "--help")
    assert outcome.code == 0
    assert f"star-export {command}" in outcome.out.split("Example")[1]


def test_version(cli: Any) -> None:
    assert re.fullmatch(r"star-export \d+\.\d+\.\d+\n", cli("--version").out)


def test_unknown_command(cli: Any) -> None:
    outcome = cli("biuld")
    assert outcome.code == 2
    assert "Did you mean 'build'?" in outcome.err


def test_run_stops_before_a_stop_string(cli: Any, bundle: BundleOf, picture: Path) -> None:
    request = (
        "run",
        bundle("mha"),
        "--image",
        picture,
        "--prompt",
        "Where?",
        "--max-new-tokens",
        6,
        "--json",
    )
    whole = json.loads(cli(*request).out)
    stop = whole["text"][2:4]
    result = json.loads(cli(*request, "--stop", stop).out)
    assert result["text"] == whole["text"][: whole["text"].index(stop)]
    assert result["finish_reason"] == "stop"
    assert cli(*request, "--stop", "").code == 2


def test_run_follows_a_schema(cli: Any, bundle: BundleOf, picture: Path, tmp_path: Path) -> None:
    request = ("run", bundle("mini"), "-i", picture, "-p", "Where?", "--json")
    (tmp_path / "schema.json").write_text('{"enum": ["here", "there"]}')
    assert "logprobs" not in json.loads(cli(*request).out)
    for schema in ('{"enum": ["here", "there"]}', tmp_path / "schema.json"):
        result = json.loads(cli(*request, "--schema", schema, "--top-logprobs", 2).out)
        assert result["text"] in ('"here"', '"there"')
        assert result["finish_reason"] == "stop"
        assert [len(one["top_logprobs"]) for one in result["logprobs"]] == [2] * len(result["token_ids"])
    cut = json.loads(cli(*request, "--schema", schema, "--max-new-tokens", 1).out)
    assert (cut["text"], cut["finish_reason"]) == ('"', "length")


def test_run_streams_what_json_reports(cli: Any, bundle: BundleOf, picture: Path) -> None:
    request = ("run", bundle("mha"), "--image", picture, "--prompt", "Where?", "--max-new-tokens", 6)
    streamed, result = cli(*request), json.loads(cli(*request, "--json").out)
    assert streamed.code == 0
    assert streamed.out == result["text"] + "\n"
    assert "518 -> 64 visual tokens" in streamed.err
    assert set(result) == {
        "text",
        "token_ids",
        "finish_reason",
        "stage1_indices",
        "stage2_indices",
        "prompt_tokens",
        "timings_ms",
    }
    assert result["finish_reason"] == "length"
    assert set(result["timings_ms"]) == {"vision", "prefill", "decode", "total"}
    assert len(result["token_ids"]) == len(result["timings_ms"]["decode"]) + 1 == 6
    assert len(result["stage1_indices"]) == 518


def test_run_with_several_pictures(cli: Any, bundle: BundleOf, picture: Path) -> None:
    request = ("run", bundle("mini", max_images=3), "-i", picture, "-i", picture, "--json", "-p")
    opened, placed = (
        json.loads(cli(*request, prompt).out)
        for prompt in ("where?", "USER: <image>\n<image>\nwhere? ASSISTANT:")
    )
    assert len(opened["stage1_indices"]) == 2 * 518
    assert max(opened["stage1_indices"]) >= 576
    assert len(opened["stage2_indices"]) == 64
    assert opened["token_ids"] == placed["token_ids"]
    refused(cli(*request, "<image> where?"), "the prompt has 1 <image> tokens, expected 2")


def test_run_with_another_budget(cli: Any, bundle: BundleOf, picture: Path) -> None:
    request = ("run", bundle("mha"), "-i", picture, "-p", "Where?", "--max-new-tokens", 1, "--json")
    for keep in (1, 29, 288):
        assert len(json.loads(cli(*request, "--keep", keep).out)["stage2_indices"]) == keep


def test_run_samples_repeatably(cli: Any, bundle: BundleOf, picture: Path) -> None:
    request = ("run", bundle("mha"), "-i", picture, "-p", "Where?", "--json", "--temperature", 1.5)
    ids = [json.loads(cli(*request, "--seed", seed).out)["token_ids"] for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_check_reports_everywhere(cli: Any, bundle: BundleOf, tmp_path: Path) -> None:
    junit = tmp_path / "parity.xml"
    request = ("check", bundle("mha"), "--keep", 64, "--keep", 29, "--probes", 1, "--junit", junit)
    outcome = cli(*request)
    assert outcome.code == 0
    assert "pass: 2 cases" in outcome.out
    report = json.loads(cli(*request, "--json").out)
    assert report["passed"]
    assert [case["keep"] for case in report["cases"]] == [64, 29]
    assert json.loads((bundle("mha") / "reports/check-onnxruntime.json").read_text())["passed"]
    suites = ElementTree.parse(junit).getroot().findall("testsuite")
    assert [int(suite.get("tests", 0)) for suite in suites] == [10, 10, 2]


def test_check_with_a_picture_of_ones_own(cli: Any, bundle: BundleOf, picture: Path) -> None:
    request = (
        "check",
        bundle("gqa"),
        "--image",
        picture,
        "--prompt",
        "Why?",
        "--json",
        "--max-new-tokens",
        2,
    )
    outcome = cli(*request)
    assert outcome.code == 0
    assert [case["picture"] for case in json.loads(outcome.out)["cases"]] == ["picture.png"]


def test_inspect(cli: Any, bundle: BundleOf) -> None:
    outcome = cli("inspect", bundle("gqa"))
    assert outcome.code == 0
    facts = (
        "2 CLIP layers, 576 patches of 14 px in 336 px",
        "1 picture, 576 visual tokens",
        "-> 518 of each picture before the decoder by received",
        "-> 64 (at most 288) after layer 2 by text",
    )
    for fact in (*facts, "graphs/decoder.safetensors", "stage2_slots", "every file matches its hash"):
        assert fact in " ".join(outcome.out.split())
    manifest = json.loads(cli("inspect", bundle("gqa"), "--json").out)
    assert manifest["spec"]["schedule"][1]["tokens"] == 64


@pytest.mark.parametrize("command", ["run", "check", "bench"])
def test_a_bfloat16_bundle_on_the_cpu(cli: Any, bundle: BundleOf, picture: Path, command: str) -> None:
    options = () if command == "check" else ("-i", picture, "-p", "Why?")
    folder = bundle("mha", dtype="bfloat16")
    refused(
        cli(command, folder, *options),
        "is bfloat16, which ONNX Runtime cannot run; build with --dtype float32, or run it on TensorRT",
    )


def test_inspect_names_layers_in_float32(cli: Any, bundle: BundleOf) -> None:
    outcome = cli("inspect", bundle("mha", dtype="float16", fp32_layers=WIDE))
    assert f"float16, float32 in {', '.join(WIDE)}" in " ".join(outcome.out.split())
    quantised = cli("inspect", bundle("mha", quantize="int4")).out
    assert "float32, all weights int4 in blocks of 32" in quantised


def test_check_shows_the_agreement(cli: Any, bundle: BundleOf) -> None:
    outcome = cli("check", bundle("mha", dtype="float16"), "--probes", 1, "--max-new-tokens", 1)
    [row] = [line for line in outcome.out.splitlines() if "│ stage1_set" in line]
    assert re.search(r"│ (100|99)\.\d\d% +│ (100|99)\.\d\d% ", row)


def test_doctor(cli: Any) -> None:
    outcome = cli("doctor")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80
    lines = [line.strip() for line in outcome.out.splitlines()]
    parts = {part["name"]: part for part in json.loads(cli("doctor", "--json").out)["parts"]}
    missing = {name for name, part in parts.items() if not part["works"]}
    gpu = {"GPU", "build tensorrt engines"}
    gpu |= {f"backend {name}" for name in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")}
    assert missing <= gpu | {"compile the plugin library", "calibrate"}
    assert "sm80, sm86, sm89, sm120, sm121" in parts["build tensorrt-rtx engines"]["found"]
    assert "pip install 'star-export[tensorrt]'" in parts["build tensorrt engines"]["remedy"] or not missing
    assert "torch" in parts["build and check"]["found"]
    for name, part in parts.items():
        assert any(line.startswith(("ok  " if part["works"] else "no  ") + name) for line in lines)
        if part["remedy"]:
            assert part["remedy"] in lines  # whole, to be copied
            assert part["remedy"] not in part["found"]


def test_build_json_then_overwrite(cli: Any, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    request = (
        *("build", "--model", checkpoint("gqa"), "--output", tmp_path / "b", "--keep-ratio", 0.05),
        *("--drop-ratio", 0.5, "--prune-layer", 1, "--max-text-tokens", 64, "--max-new-tokens", 8, "--json"),
    )
    outcome = cli(*request, "--check")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["parity"]["passed"]
    assert [(s["after_layer"], s["tokens"]) for s in report["spec"]["schedule"]] == [(0, 288), (1, 29)]
    assert (tmp_path / "b" / "reports/check-onnxruntime.json").exists()
    assert {step["step"] for step in report["steps"]} >= {"vision weights", "decoder weights", "decode graph"}
    assert cli(*request).code == 2
    assert cli(*request, "--overwrite").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
