"""Engines from the command line, on a machine without a GPU."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from star_export.build import BuildReport
from star_export.bundle import open_bundle
from star_export.engines import Runtime
from star_export.engines.tensorrt.facts import read_facts
from star_export.validation.report import ParityReport

from .conftest import refused

BundleOf = Callable[..., Path]


@pytest.fixture(scope="module")
def engines(bundle: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with TensorRT-RTX engines. Do not write into it."""
    from star_export.build import add_engines
    from star_export.engines.tensorrt.builder import EngineOptions

    folder = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(bundle("gqa", dtype="float16"), folder)
    add_engines(folder, EngineOptions(backend="tensorrt-rtx"))
    return folder


def test_checkpoint_to_engines(cli: Any, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    request = ("--model", checkpoint("mha"), "-o", folder, "--keep", 32, "--backend", "tensorrt-rtx")
    outcome = cli("build", *request, "--target", "sm89", "--target", "sm120", "--max-batch", 4, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["spec"]["dtype"] == "float16"
    steps = [step["step"] for step in report["steps"]]
    assert steps[-4:-1] == [f"tensorrt-rtx {graph} engine" for graph in ("vision", "prefill", "decode")]
    facts = read_facts(open_bundle(folder, verify=True), "tensorrt-rtx")
    assert (facts.targets, facts.max_batch) == (("sm89", "sm120"), 4)

    again = cli("build", "--from-bundle", folder, "--backend", "tensorrt-rtx", "--capacities", "64,512")
    assert again.code == 0, again.err
    assert "next: star-export run" in again.err
    assert "tensorrt-rtx prefill-512 engine" in again.err
    facts = read_facts(open_bundle(folder, verify=True), "tensorrt-rtx")
    assert len(facts.targets) == 5
    assert [engines.room for engines in facts.smaller] == [64, 512]
    shown = " ".join(cli("inspect", folder).out.split())
    assert "sm80, sm86, sm89, sm120, sm121" in shown
    assert "room for 64, 512, 1,024 tokens of text and answer" in shown
    assert "engines/tensorrt-rtx/decode-64.engine" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--from-bundle adds engines; give --backend tensorrt or tensorrt-rtx"),
        (("--target", "sm89"), "--target needs --backend tensorrt or tensorrt-rtx"),
        (("--capacities", "64"), "--capacities needs --backend tensorrt or tensorrt-rtx"),
        (
            ("--backend", "tensorrt-rtx", "--capacities", "64,200"),
            "--capacities 64,200: 200 is too large, this bundle has 128 text + 32 new tokens; give at most",
        ),
        (("--backend", "tensorrt-rtx", "--keep", 29), "--keep belongs to --model"),
        (("--backend", "tensorrt-rtx", "--target", "sm98"), "unknown target sm98; did you mean sm89?"),
        (("--backend", "tensorrt-rtx", "--max-batch", 0), "--max-batch must be at least 1, got 0"),
        (("--backend", "tensorrt-rtx", "--timing-cache", "x"), "tensorrt-rtx has no --timing-cache"),
        (("--backend", "tensorrt", "--plugins", "library"), "needs --plugin-library PATH"),
        (
            ("--backend", "tensorrt", "--plugins", "library", "--plugin-library", "gone.so"),
            "--plugin-library gone.so does not exist",
        ),
        (("--backend", "tensorrt-rtx", "--workspace", 1), "no tactics to implement the operation"),
    ],
)
def test_bad_options(cli: Any, engines: Path, options: tuple[object, ...], message: str) -> None:
    before = (engines / "manifest.json").read_bytes()
    refused(cli("build", "--from-bundle", engines, *options), message)
    assert (engines / "manifest.json").read_bytes() == before
    open_bundle(engines, verify=True)
    assert not list((engines / "engines").glob(".*"))


def test_capacities_are_numbers(cli: Any) -> None:
    outcome = cli("build", "--from-bundle", "b", "--backend", "tensorrt-rtx", "--capacities", "64 96")
    assert outcome.code == 2
    assert "'64 96' is no list of numbers of tokens" in outcome.err


def test_neither_model_nor_bundle(cli: Any) -> None:
    refused(cli("build"), "give --model NAME, or --from-bundle DIR")


def test_full_tensorrt_says_how_to_install_it(cli: Any, engines: Path) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        outcome = cli("build", "--from-bundle", engines, "--backend", "tensorrt")
        refused(outcome, "pip install 'star-export[tensorrt]'")
    else:
        pytest.skip("TensorRT is installed here")


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("tensorrt-rtx", "no NVIDIA driver"),
        ("tensorrt", "has no tensorrt engines; make them: star-export build --from-bundle"),
        ("onnxruntime-cuda", "onnxruntime-gpu"),
    ],
)
def test_what_a_backend_lacks_here(
    cli: Any, engines: Path, picture: Path, backend: str, message: str
) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU driver")
    options = ("--image", picture, "--prompt", "What is this?", "--backend", backend)
    refused(cli("run", engines, *options), message)


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "onnxruntime-cuda"])
def test_check_needs_a_gpu_before_anything_is_built(
    cli: Any, checkpoint: Callable[[str], Path], tmp_path: Path, backend: str
) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU driver")
    request = ("--model", checkpoint("mha"), "-o", tmp_path / "out" / "b", "--backend", backend)
    refused(cli("build", *request, "--check"), "no NVIDIA driver")
    assert not (tmp_path / "out").exists()


def test_bfloat16_is_not_checked_without_tensorrt(cli: Any, tmp_path: Path) -> None:
    """Said before even the checkpoint is looked for."""
    request = ("build", "--model", tmp_path / "nowhere", "-o", tmp_path / "b", "--dtype", "bfloat16")
    refused(cli(*request, "--check"), "--check cannot run a bfloat16 bundle without TensorRT")
    refused(cli(*request), "nowhere")


def test_the_check_after_a_build_gets_its_options(
    cli: Any, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fakes stand for the build, the GPU and the check: only what the check is told is looked at."""
    told: dict[str, Any] = {}

    def check_bundle(folder: Path, **options: Any) -> ParityReport:
        told.update(options, folder=folder)
        return ParityReport(str(folder), options["runtime"].backend, "checkpoint", "float16", ())

    library = tmp_path / "libstar_export_plugins.so"
    spec = open_bundle(engines).spec
    monkeypatch.setattr("star_export.build.add_engines", lambda *_: BuildReport(engines, spec, ()))
    monkeypatch.setattr("star_export.engines.backends.require_device", lambda: None)
    monkeypatch.setattr("star_export.validation.check.check_bundle", check_bundle)
    request = ("build", "--from-bundle", engines, "--backend", "tensorrt", "--plugins", "library", "--check")
    outcome = cli(*request, "--plugin-library", library, "--json")
    assert outcome.code == 1  # nothing was compared, which is no pass
    assert json.loads(outcome.out)["parity"]["passed"] is False
    assert told["folder"] == engines
    assert told["runtime"] == Runtime(backend="tensorrt", plugin_library=library)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "damaged"),
        ({"tensorrt-rtx": {}}, "damaged"),
        ({"tensorrt-rtx": {"version": "new", "targets": ["sm89"]}}, "entry is damaged"),
        ({"tensorrt-rtx": {"version": 1, "targets": ["sm89"]}}, "version: expected str, got int, found 1"),
    ],
)
def test_a_damaged_entry_of_the_manifest(
    cli: Any, engines: Path, picture: Path, tmp_path: Path, entry: Any, message: str
) -> None:
    folder = Path(shutil.copytree(engines, tmp_path / "b"))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    facts = manifest["engines"]["tensorrt-rtx"]
    merged = {name: facts | value for name, value in entry.items() if value} if entry else entry
    manifest["engines"] = merged or entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    outcome = cli("run", folder, "--image", picture, "--prompt", "x", "--backend", "tensorrt-rtx")
    refused(outcome, message)


def test_a_changed_engine_byte(cli: Any, engines: Path, picture: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(engines, tmp_path / "b"))
    engine = folder / "engines" / "tensorrt-rtx" / "decode.engine"
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    outcome = cli("run", folder, "--image", picture, "--prompt", "x", "--backend", "tensorrt-rtx")
    refused(outcome, "decode.engine differs from the SHA-256 in the manifest")


def test_polygraphy_compares_the_runtimes(cli: Any, engines: Path) -> None:
    outcome = cli("check", engines, "--polygraphy", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["passed"]
    compared = {(output["graph"], output["runtime"]) for output in report["outputs"]}
    assert {(graph, "onnxruntime") for graph in ("vision", "prefill", "decode")} <= compared
    names = {output["output"] for output in report["outputs"]}
    assert {"image_features", "kept_positions", "logits", "present.0.key"} <= names
    assert all(output["error"] <= output["tolerance"] for output in report["outputs"])
    assert "tensorrt-rtx" in report["not_run"] or any(runtime == "tensorrt-rtx" for _, runtime in compared)
    table = cli("check", engines, "--polygraphy", "--probes", 1)
    assert "pass: 1 case against Polygraphy" in table.out


def test_polygraphy_takes_every_picture_and_budget(
    cli: Any, engines: Path, picture: Path, tmp_path: Path
) -> None:
    other, junit = shutil.copy(picture, tmp_path / "other.png"), tmp_path / "runtimes.xml"
    cases = ("--image", picture, "--image", other, "--keep", 64, "--keep", 29)
    outcome = cli("check", engines, "--polygraphy", *cases, "--junit", junit, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    wanted = [(name, keep) for name in ("picture.png", "other.png") for keep in (64, 29)]
    assert list(dict.fromkeys((found["picture"], found["keep"]) for found in report["outputs"])) == wanted
    suites = ElementTree.parse(junit).getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites][:4] == [f"{name}, keep {keep}" for name, keep in wanted]
    tests = [int(suite.get("tests", 0)) for suite in suites]
    assert sum(tests) == len(report["outputs"]) + len(report["not_run"])
    assert len(list(ElementTree.parse(junit).iter("skipped"))) == len(report["not_run"])
    refused(cli("check", engines, "--polygraphy", "--keep", 518), "--keep 518 is not below the 518 tokens")


def test_polygraphy_finds_a_runtime_that_differs(
    cli: Any, engines: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cache of one layer is off by a row: decode attends to something else."""
    from star_export.engines.onnxruntime import OnnxRuntimeCaches

    true_numpy = OnnxRuntimeCaches.numpy

    def shifted(self: OnnxRuntimeCaches, name: str) -> Any:
        array = true_numpy(self, name)
        array[:, :, 1:] = array[:, :, :-1].copy()
        return array

    monkeypatch.setattr(OnnxRuntimeCaches, "numpy", shifted)
    junit = tmp_path / "runtimes.xml"
    outcome = cli("check", engines, "--polygraphy", "--probes", 1, "--junit", junit)
    assert outcome.code == 1
    assert "FAIL" in outcome.out
    assert list(ElementTree.parse(junit).iter("failure"))


def test_verbose_shows_what_tensorrt_says(cli: Any, engines: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(engines, tmp_path / "b"))
    outcome = cli("-v", "build", "--from-bundle", folder, "--backend", "tensorrt-rtx")
    assert outcome.code == 0
    for line in ("memory before the build", "memory after the build", "builder peak", "Int64 binding"):
        assert line in outcome.err
    quiet = cli("build", "--from-bundle", folder, "--backend", "tensorrt-rtx")
    assert "binding" not in quiet.err
