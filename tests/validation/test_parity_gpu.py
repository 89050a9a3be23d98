"""check_bundle with engines: passes on a GPU; on the fake one with ONNX Runtime's very errors."""

import shutil
from pathlib import Path

from star_export.bundle import open_bundle
from star_export.engines import Runtime
from star_export.reports import read_reports
from star_export.validation.check import check_bundle
from star_export.validation.probes import make_probes
from tests.fake_gpu.machine import LATE, Machine


@LATE
def test_engines_pass(machine: Machine, backend: str, tmp_path: Path) -> None:
    engines = machine.engines(backend, "mha", capacities=(64,))
    folder = shutil.copytree(engines.folder, tmp_path / "bundle")
    run = lambda name: check_bundle(  # noqa: E731
        folder, runtime=Runtime(backend=name), keep=(29,), probes=make_probes(1), max_new_tokens=4
    )
    report = run(backend)
    assert report.passed
    stored = {found.report.backend: found for found in read_reports(open_bundle(folder)) if found.report}
    assert "decode_room_64" in {stage.stage for stage in report.batches}
    names = {f"engines/{backend}/{name}.engine" for name in ("prefill", "decode", "prefill-64", "decode-64")}
    assert names <= stored[backend].report.subject.keys()
    assert stored[backend].report.versions[backend]
    assert stored[backend].state == "current"
    if machine.fake is not None:
        assert report.cases == run("onnxruntime").cases
