"""Real TensorRT-RTX builds: every engine of every small checkpoint, and what must not become one."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from star_export.build import add_engines
from star_export.bundle import open_bundle
from star_export.contract import GRAPHS
from star_export.engines.tensorrt.builder import (
    EngineOptions,
    build_apart,
    build_engines,
    check_options,
    options_like,
)
from star_export.engines.tensorrt.facts import read_facts
from star_export.engines.tensorrt.profiles import engine_profiles
from star_export.engines.tensorrt.request import EngineRequest
from star_export.engines.tensorrt.worker import build_engine
from star_export.errors import BundleError, PlatformError, SettingsError
from star_export.specs import Quantization
from tests.graphs.random_graphs import export_random
from tests.shapes import WIDE

BundleOf = Callable[..., Path]
RTX = EngineOptions(backend="tensorrt-rtx", targets=("sm89", "sm120"))


@pytest.fixture
def copy(bundle: BundleOf, tmp_path: Path) -> Callable[..., Path]:
    """``copy("mha", ...)``: a float16 bundle that a test may change."""
    return lambda name, dtype="float16", **options: Path(
        shutil.copytree(bundle(name, dtype=dtype, **options), tmp_path / name)
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mha", {}),
        ("gqa", {}),
        pytest.param("deep", {}, marks=pytest.mark.slow),
        pytest.param("gqa", {"prune": False}, marks=pytest.mark.slow),
        # Every family, tower and decoder; bundles that are checked too.
        ("interleave", {"max_images": 3}),
        ("next-mistral", {"max_images": 3}),
        ("onevision", {"max_images": 3}),
        ("gqa", {"dtype": "bfloat16"}),
        ("mha", {"fp32_layers": WIDE}),
    ],
)
def test_every_engine_builds(
    copy: Callable[..., Path], name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy(name, **options)
    with caplog.at_level(logging.INFO, "star_export.tensorrt"):
        report = add_engines(folder, RTX)
    assert [step.step for step in report.steps] == [f"tensorrt-rtx {graph} engine" for graph in GRAPHS]
    bundle = open_bundle(folder, verify=True)
    facts = read_facts(bundle, "tensorrt-rtx")
    assert facts.targets == ("sm89", "sm120")
    assert facts.plugins == "none"
    assert facts.max_batch == 8
    assert facts.weights_files == {file.path: file.sha256 for file in bundle.weights}
    # Nothing that TensorRT says of these graphs is unexpected: no inconsistent profile, no dropped input.
    said = [r for r in caplog.records if r.name.startswith("star_export.tensorrt")]
    assert [r.getMessage() for r in said if r.levelno >= logging.WARNING] == []
    assert any("builder peak" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("quantize", "weights"),
    [("int4", "shared"), ("int4", "baked"), pytest.param("int8", "shared", marks=pytest.mark.slow)],
)
def test_quantised_weights_build(copy: Callable[..., Path], quantize: str, weights: str) -> None:
    folder = copy("mha", quantize=quantize)
    add_engines(folder, replace(RTX, targets=("sm89",), weights=weights))
    assert open_bundle(folder, verify=True).spec.quantization is not None


def test_rows_of_tokens_build(copy: Callable[..., Path]) -> None:
    """As inputs: the builder takes no table of integers as a constant."""
    folder = copy("gqa", quantize="int8", quantize_embedding=True)
    add_engines(folder, replace(RTX, targets=("sm89",)))
    with pytest.raises(SettingsError, match=r"quantize_embedding=True, and TensorRT takes no such table"):
        add_engines(folder, replace(RTX, targets=("sm89",), weights="baked"))


def test_zero_points_are_refused(copy: Callable[..., Path]) -> None:
    with pytest.raises(SettingsError, match=r"no zero points, which uint4 has; build .* quantize=int4"):
        add_engines(copy("mha", quantize="uint4"), RTX)


def test_zero_points_of_a_checkpoint_are_refused(copy: Callable[..., Path]) -> None:
    spec = open_bundle(copy("mha")).spec
    given = Quantization(type="uint4", block=32, layers=("language_model.layers.0.mlp.up_proj",))
    with pytest.raises(SettingsError, match=r"which uint4 has; give the original float weights and quant"):
        check_options(RTX, replace(spec, quantization=given))


def test_shared_weights_are_in_no_engine(copy: Callable[..., Path]) -> None:
    """60 MB of weights: in prefill and in decode, or in neither."""
    folder, sizes = copy("serving"), {}
    for weights in ("shared", "baked"):
        report = add_engines(folder, replace(RTX, targets=("sm89",), weights=weights))
        sizes[weights] = {step.step.split()[1]: step.bytes for step in report.steps}
        facts = read_facts(open_bundle(folder), "tensorrt-rtx")
        assert bool(facts.weights_files) == (weights == "shared")
        assert options_like(facts).weights == weights
    decoder = (folder / "graphs" / "decoder.safetensors").stat().st_size
    for graph in ("prefill", "decode"):
        assert sizes["shared"][graph] < 8 << 20
        assert sizes["baked"][graph] > 0.9 * decoder


def test_engines_are_replaced_whole_or_not_at_all(copy: Callable[..., Path]) -> None:
    folder = copy("mha")
    add_engines(folder, RTX)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "graphs" / "decode.onnx").rename(folder / "decode.onnx")
    with pytest.raises(BundleError, match=r"lacks graphs/decode\.onnx"):
        add_engines(folder, RTX)
    (folder / "decode.onnx").rename(folder / "graphs" / "decode.onnx")
    with pytest.raises(PlatformError, match="workspace"):  # vision already fails
        add_engines(folder, replace(RTX, workspace=1))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    add_engines(folder, replace(RTX, targets=("sm86",), max_batch=2))
    facts = read_facts(open_bundle(folder, verify=True), "tensorrt-rtx")
    assert facts.targets == ("sm86",)
    assert facts.max_batch == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(RTX, targets=("sm98",)), "unknown target sm98; did you mean sm89"),
        (replace(RTX, targets=("hopper",)), "targets are sm80, sm86, sm89, sm120, sm121"),
        (replace(RTX, max_batch=0), "max_batch must be at least 1, got 0"),
        (replace(RTX, plugins="aot"), "tensorrt-rtx has no plugins"),
        (
            replace(RTX, hardware_compatible=True, version_compatible=True),
            "hardware_compatible, version_c",
        ),
        (replace(RTX, weights="once"), "weights must be shared or baked, got once"),
        (replace(RTX, weights="shared", weight_streaming=True), "leave it out, or give weights=baked"),
        (EngineOptions(backend="tensorrt", targets=("sm89",)), "targets is for backend=tensorrt-rtx"),
        (EngineOptions(backend="tensorrt", plugins="library"), "plugins=library needs plugin_library=PATH"),
        (
            EngineOptions(backend="tensorrt", plugins="library", plugin_library=Path("nowhere.so")),
            "plugin_library=nowhere.so does not exist",
        ),
    ],
)
def test_options_that_contradict(copy: Callable[..., Path], options: EngineOptions, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        add_engines(copy("mha"), options)
    assert message in str(caught.value)


def test_float32_bundles_are_refused(bundle: BundleOf, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="build it with dtype=float16"):
        add_engines(Path(shutil.copytree(bundle("mha"), tmp_path / "b")), RTX)


def test_budgets_over_tensorrts_topk_are_refused(copy: Callable[..., Path]) -> None:
    spec = open_bundle(copy("mha")).spec
    large = replace(spec, max_text_tokens=3800)
    with pytest.raises(SettingsError, match="keeps up to 4088 tokens, TensorRT's TopK chooses at most 3840"):
        build_engines(Path(), large, RTX, weights={}, output=Path(), step=nullcontext)


def test_a_builder_that_dies_is_an_error_of_one_line(bundle: BundleOf, tmp_path: Path) -> None:
    """The process really dies, of the crash that the exported graph avoids by one addition.

    A graph that takes one token at a time: of more, TensorRT-RTX says what is wrong instead.
    """
    spec = replace(open_bundle(bundle("mha", dtype="float16")).spec, append_tokens=1)
    profiles = engine_profiles(spec, max_batch=8)["decode"]
    path = export_random(spec, "decode", tmp_path)
    model = onnx.load(path, load_external_data=False)
    assert model.graph.node[0].output == ["late_write_indices"]
    del model.graph.node[0]
    for names in [node.input for node in model.graph.node]:
        names[:] = ["late_lengths" if name == "late_write_indices" else name for name in names]
    onnx.save(model, path)
    request = EngineRequest(
        backend="tensorrt-rtx",
        graph=str(path),
        output=str(tmp_path / "out.engine"),
        profiles=profiles,
        targets=("sm89",),
    )
    with pytest.raises(
        PlatformError, match=r"the tensorrt-rtx builder died on the decode graph \(exit -11"
    ) as e:
        build_apart(request, "decode")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out.engine").exists()


# Planted faults, each in a graph of its own.

X = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 3])
QKV = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 2, 8, 16]) for name in "qkv"]
LENGTH = helper.make_tensor_value_info("length", TensorProto.INT64, [1])


def planted(path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto]) -> EngineRequest:
    sizes = [size.dim_value for size in inputs[0].type.tensor_type.shape.dim]
    scalar = nodes[0].op_type == "Det"
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [] if scalar else sizes)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("star", 1)]
    graph = helper.make_graph(nodes, "planted", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return EngineRequest(
        backend="tensorrt-rtx", graph=str(path), output=str(path) + ".engine", profiles={}, targets=("sm89",)
    )


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        (
            helper.make_node("Det", ["x"], ["y"], name="volume"),
            [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 2])],
            r"does not accept node volume \(Det\): .*; build the bundle again, or run it with",
        ),
        (
            helper.make_node("Attention", [*"qkv", "", "", "", "length"], ["y"], name="padded"),
            [*QKV, LENGTH],
            r"node padded \(Attention\): .* drops input 6 \(length\) without a word",
        ),
        (
            helper.make_node("Softmax", ["x"], ["y"], name="mine", domain="star"),
            [X],
            r"node mine \(star::Softmax\): .* ignores the domain and would take ONNX's own Softmax",
        ),
        (
            helper.make_node("Sharpen", ["x"], ["y"], name="custom", domain="star"),
            [X],
            r"does not accept node custom \(Sharpen\): .*Plugin not found",
        ),
        (
            helper.make_node("LayerNormalization", ["x", "x"], ["y"], name="norm", stash_type=10),
            [X],
            r"node norm \(LayerNormalization\): .* drops the attribute stash_type=10",
        ),
        (
            helper.make_node("Softmax", ["x"], ["y"], name="typo", axes=1),
            [X],
            r"is not a valid ONNX graph: .*axes",
        ),
    ],
)
def test_what_the_parser_would_get_wrong_is_refused_by_name(
    tmp_path: Path, node: onnx.NodeProto, inputs: list[onnx.ValueInfoProto], message: str
) -> None:
    request = planted(tmp_path / "planted.onnx", [node], inputs)
    with pytest.raises(BundleError, match=message):
        build_engine(request)
    assert not Path(request.output).exists()


def test_an_input_that_tensorrt_ignores_is_refused(tmp_path: Path) -> None:
    request = planted(
        tmp_path / "planted.onnx", [helper.make_node("Relu", ["x"], ["y"], name="relu")], [X, LENGTH]
    )
    with pytest.raises(BundleError, match="made an engine that ignores the input length"):
        build_engine(request)
    assert not Path(request.output).exists()


def test_a_layer_too_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the review by name out of the way, the count of layers still finds the clash."""
    from star_export.engines.tensorrt import review

    monkeypatch.setattr(review, "_fault", lambda _node, _builtin: None)
    node = helper.make_node("Softmax", ["x"], ["y"], name="mine", domain="star")
    with pytest.raises(BundleError, match="has 0 Softmax nodes, TensorRT's parser made 1 SOFTMAX layers"):
        build_engine(planted(tmp_path / "planted.onnx", [node], [X]))


def test_a_good_graph_builds(tmp_path: Path) -> None:
    request = planted(tmp_path / "planted.onnx", [helper.make_node("Relu", ["x"], ["y"], name="relu")], [X])
    build_engine(request)
    assert Path(request.output).stat().st_size > 1000
    assert EngineRequest.from_json(request.to_json()) == request


def test_a_system_that_does_not_tell_memory_builds_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker runs as on Windows: without ``/proc``."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport pathlib, runpy, sys\nfrom star_export import memory\n"
        "memory._STATUS, sys.argv = pathlib.Path('nowhere'), sys.argv[2:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__')\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    request = planted(tmp_path / "planted.onnx", [helper.make_node("Relu", ["x"], ["y"], name="relu")], [X])
    with caplog.at_level("INFO", logger="star_export"):
        build_apart(request, "vision")
    assert Path(request.output).stat().st_size > 1000
    assert "memory before the build: unknown" in caplog.messages
    assert "MiB resident" not in caplog.text


def test_a_disk_that_fills_up_leaves_nothing_behind(copy: Callable[..., Path], tmp_path: Path) -> None:
    """The limit on file sizes stands in for the disk; the write happens inside TensorRT's builder."""
    folder = copy("mha")
    request = EngineRequest(
        backend="tensorrt-rtx",
        graph=str(folder / "graphs" / "vision.onnx"),
        output=str(tmp_path / "out" / "vision.engine"),
        profiles=engine_profiles(open_bundle(folder).spec, max_batch=1)["vision"],
        targets=("sm89",),
    )
    (tmp_path / "out").mkdir()
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000));"
        "runpy.run_module('star_export.engines.tensorrt.worker', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, request.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["error"] == "OSError"
    assert "File too large" in outcome["reason"]
    assert list((tmp_path / "out").iterdir()) == []


def test_the_graphs_on_disk_stay_as_they_are(copy: Callable[..., Path]) -> None:
    folder = copy("gqa")
    before = (folder / "graphs" / "decode.onnx").read_bytes()
    add_engines(folder, RTX)
    assert (folder / "graphs" / "decode.onnx").read_bytes() == before


def test_engines_of_a_manifest_that_names_foreign_files(copy: Callable[..., Path]) -> None:
    folder = copy("mha")
    with pytest.raises(
        BundleError, match="has no tensorrt-rtx engines; make them: star-export build --from-bundle"
    ):
        read_facts(open_bundle(folder), "tensorrt-rtx")
    add_engines(folder, RTX)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["engines"]["tensorrt-rtx"]["files"]["decode"] = "../decode.engine"
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="its files are not those of the bundle"):
        read_facts(open_bundle(folder), "tensorrt-rtx")
    engine = folder / "engines" / "tensorrt-rtx" / "vision.engine"
    changed = np.frombuffer(engine.read_bytes(), np.uint8).copy()
    changed[1000] ^= 1
    engine.write_bytes(changed.tobytes())
    with pytest.raises(BundleError, match=r"vision\.engine differs from the SHA-256 in the manifest"):
        open_bundle(folder)
