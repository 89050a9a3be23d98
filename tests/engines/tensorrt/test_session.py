"""What a session says before it reaches a GPU, with real engines and real bindings."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from star_export.arrays import to_float32
from star_export.baseline import build_baseline
from star_export.bundle import Bundle, open_bundle
from star_export.cli.flags import with_flags
from star_export.contract import DECODE, GRAPHS, PREFILL, VISION
from star_export.engines import Runtime, open_session
from star_export.engines.tensorrt import cuda
from star_export.engines.tensorrt.bindings import Bindings, Message, first_error, load_bindings
from star_export.engines.tensorrt.engine import create_runtime, deserialize, lean_library
from star_export.engines.tensorrt.facts import read_facts
from star_export.engines.tensorrt.loading import load_plugins, share_budget
from star_export.errors import BundleError, PlatformError, SettingsError, spelled

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.runtime")

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def rtx() -> Bindings:
    return load_bindings(RTX)


@pytest.fixture(scope="module")
def engines(engine_bundle: Callable[..., Bundle]) -> Bundle:
    return engine_bundle(RTX, "mha", "sm89")


@pytest.fixture
def no_gpu() -> None:
    try:
        cuda.require_device()
    except PlatformError:
        return
    pytest.skip("this machine has a GPU")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_one_line_says_what_is_missing(engines: Bundle, picture: Path) -> None:
    with pytest.raises(PlatformError, match="NVIDIA driver") as caught:
        open_session(engines, Runtime(backend=RTX))
    assert "\n" not in str(caught.value)
    command = [sys.executable, "-m", "star_export.cli", "run", str(engines.folder)]
    command += ["-i", str(picture), "-p", "What?", "--backend", RTX]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert " ".join(done.stderr.split()).endswith(with_flags(caught.value))
    assert "Traceback" not in done.stderr


def test_a_bundle_without_engines(bundle: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match="has no tensorrt-rtx engines; make them: star-export build --from"):
        open_session(open_bundle(bundle("mha")), Runtime(backend=RTX))


def test_a_backend_that_is_not_installed(engines: Bundle) -> None:
    if shutil.which("trtexec"):
        pytest.skip("TensorRT is installed")
    facts = read_facts(engines, RTX).to_dict() | {"backend": "tensorrt"}
    manifest = {**engines.manifest, "engines": {"tensorrt": facts}}
    with pytest.raises(
        PlatformError, match=r"tensorrt is not installed .*pip install 'star-export\[tensorrt\]'"
    ):
        open_session(replace(engines, manifest=manifest), Runtime(backend="tensorrt"))


def test_an_engine_file_that_is_none(rtx: Bindings, tmp_path: Path) -> None:
    path = tmp_path / "vision.engine"
    path.write_bytes(b"no engine at all" * 64)
    runtime = create_runtime(rtx, rtx.version)
    with pytest.raises(BundleError, match=r"vision.engine does not fit .*\(MALFORMED_ENGINE\); .*: rebuild$"):
        deserialize(rtx, runtime, path, command="rebuild")


@pytest.mark.usefixtures("no_gpu")
def test_a_tensorrt_that_cannot_start_says_why() -> None:
    """Its bindings wrap a null pointer then, and using that would end the process."""
    lean = pytest.importorskip("tensorrt_lean")
    messages: list[Message] = []

    class Logger(lean.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            lean.ILogger.__init__(self)

        def log(self, severity: object, text: str) -> None:
            messages.append(Message(logging.ERROR, text))

    bindings = Bindings("tensorrt", lean, Logger(), messages)
    with pytest.raises(PlatformError, match=r"^tensorrt .* cannot start: .*CUDA") as caught:
        create_runtime(bindings, bindings.version)
    assert "\n" not in str(caught.value)


def test_only_errors_after_the_call_are_its_reason(rtx: Bindings) -> None:
    texts = ("old", "out of\n memory", "what follows")
    messages = [*(Message(logging.ERROR, text) for text in texts), Message(logging.INFO, "bye")]
    bindings = replace(rtx, messages=messages)
    assert first_error(bindings, 1) == "out of memory"
    assert first_error(bindings, 3) == "it gave no reason"


def test_memory_error_says_what_to_do() -> None:
    message = cuda.out_of_memory("the KV caches of 8 sequences", 6_200_000_000, 1_500_000_000)
    assert message.startswith(
        "the GPU has no room for the KV caches of 8 sequences: 6.20 GB asked for, 1.50 GB free; "
    )
    for name in ("max_text_tokens", "max_new_tokens", "weight_streaming=True"):
        assert name in spelled(message)


def test_cuda_errors_have_name_and_text() -> None:
    error = cuda.library("runtime").cudaError_t.cudaErrorInvalidValue
    with pytest.raises(PlatformError, match=r"^copying: cudaErrorInvalidValue \(invalid argument\)$"):
        cuda.check((error, None), "copying")
    success = cuda.library("runtime").cudaError_t.cudaSuccess
    assert cuda.check((success, 1), "x") == 1
    assert cuda.check((success, 1, 2), "x") == (1, 2)


def test_a_plugin_library_must_be_given(engines: Bundle, rtx: Bindings) -> None:
    facts = read_facts(engines, RTX)
    for kind in ("none", "aot"):
        load_plugins(rtx, replace(facts, plugins=kind), None)
    with pytest.raises(SettingsError, match="plugin_library"):
        load_plugins(rtx, replace(facts, plugins="library"), None)


def test_widening_bfloat16_is_exact() -> None:
    values = torch.tensor(
        [0.0, -0.0, 1.0, -3.140625, 1e-40, 3e38, torch.inf, torch.nan], dtype=torch.bfloat16
    )
    bits = values.view(torch.uint16).numpy()
    wide = to_float32(bits, "bfloat16")
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, values.float().numpy())
    assert np.signbit(wide[1])


def test_bench_builds_its_baseline_with_engines(engines: Bundle, checkpoint: Callable[[str], Path]) -> None:
    target = engines.folder.parent / "baseline"
    source, runtime = str(checkpoint("mha")), Runtime(backend=RTX)
    baseline = open_bundle(build_baseline(engines, target, source=source, runtime=runtime))
    assert not baseline.spec.schedule
    facts, own = read_facts(baseline, RTX), read_facts(engines, RTX)
    assert (facts.targets, facts.max_batch) == (own.targets, own.max_batch) == (("sm89",), 4)


@pytest.mark.parametrize(
    ("total", "vision", "prefill", "decode"),
    [(1000, 10, 100, 100), (150, 0, 50, 100), (60, 0, 0, 60), (-5, 0, 0, 0)],
)
def test_decode_gets_its_weights_first(total: int, vision: int, prefill: int, decode: int) -> None:
    budgets = share_budget(total, {VISION: 10, PREFILL: 100, DECODE: 100})
    assert budgets == {VISION: vision, PREFILL: prefill, DECODE: decode}
    assert set(budgets) == set(GRAPHS)


def test_the_lean_runtime_of_the_building_version() -> None:
    installed = version("tensorrt-lean")
    assert lean_library(installed).name.startswith("libnvinfer_lean.so")
    with pytest.raises(PlatformError, match=r"found 11\..*; run: pip install tensorrt-lean==10\.16\.1\.11"):
        lean_library("10.16.1.11")
