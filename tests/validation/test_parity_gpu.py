"""check_bundle with engines: passes on a GPU; on the fake one with ONNX Runtime's very errors."""

import shutil
from pathlib import Path

from star_export.engines import Runtime
from star_export.validation.parity import check_bundle
from star_export.validation.probes import make_probes
from tests.fake_gpu.machine import LATE, Machine


@LATE
def test_engines_pass(machine: Machine, backend: str, tmp_path: Path) -> None:
    folder = shutil.copytree(machine.engines(backend, "mha").folder, tmp_path / "bundle")
    run = lambda name: check_bundle(  # noqa: E731
        folder, runtime=Runtime(backend=name), keep=(29,), probes=make_probes(1), max_new_tokens=4
    )
    report = run(backend)
    assert report.passed
    if machine.fake is not None:
        assert report.cases == run("onnxruntime").cases
