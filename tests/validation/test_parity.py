"""check_bundle on every kind of small bundle, and when it cannot or must not pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star_export.bundle import open_bundle
from star_export.errors import BundleError, CheckpointError, SettingsError
from star_export.reports import read_reports
from star_export.testing.checkpoints import make_checkpoint
from star_export.validation.check import check_bundle
from star_export.validation.probes import make_probes
from star_export.validation.report import ParityReport
from tests.shapes import WIDE

Copy = Callable[..., Path]

PRUNED_STAGES = [
    "preprocessing", "vision_features", "stage1_set", "stage2_set", "prefill_logits",
    "kv_cache_early", "kv_cache_late", "decode_logits", "append_logits", "greedy_tokens",
]  # fmt: skip
UNPRUNED_STAGES = [s for s in PRUNED_STAGES if s not in ("stage1_set", "stage2_set", "kv_cache_late")]


@pytest.fixture
def copy(bundle: Callable[..., Path], tmp_path: Path) -> Copy:
    """A bundle of one's own: check writes its report into it."""
    ignore = shutil.ignore_patterns("reports")
    return lambda preset, **options: shutil.copytree(
        bundle(preset, **options), tmp_path / "bundle", ignore=ignore
    )


def check(folder: Path, *, probes: int = 1, max_new_tokens: int = 4, **options: Any) -> ParityReport:
    return check_bundle(folder, probes=make_probes(probes), max_new_tokens=max_new_tokens, **options)


def first_failure(report: ParityReport) -> str:
    return next(s.stage for case in report.cases for s in case.stages if s.status == "fail")


@pytest.mark.parametrize(
    ("preset", "dtype", "keep"),
    [
        ("mha", "float32", (288, 115, 58, 29, 1)),
        ("gqa", "float32", (288, 115, 58, 29)),
        # Of 256 patches, 230 after stage 1.
        pytest.param("deep", "float32", (115, 58, 29), marks=pytest.mark.slow),
        ("mha", "float16", (115, 29)),
    ],
)
def test_pruned_bundles_pass(copy: Copy, preset: str, dtype: str, keep: tuple[int, ...]) -> None:
    folder = copy(preset, dtype=dtype)
    report = check(folder, keep=keep)
    assert report.passed
    assert [case.keep for case in report.cases] == list(keep)
    assert all([stage.stage for stage in case.stages] == PRUNED_STAGES for case in report.cases)
    assert all(0 <= s.error <= s.tolerance for case in report.cases for s in case.stages)
    # Not vacuous: float arithmetic in another order never agrees to the last bit.
    assert all(case.stages[i].error > 0 for case in report.cases for i in (1, 4, 5, 6, 7, 8))


@pytest.mark.parametrize("preset", ["mha", "gqa", pytest.param("deep", marks=pytest.mark.slow)])
def test_unpruned_bundles_pass(copy: Copy, preset: str) -> None:
    report = check(copy(preset, prune=False))
    assert report.passed
    assert [case.keep for case in report.cases] == [None]
    assert [stage.stage for stage in report.cases[0].stages] == UNPRUNED_STAGES


def test_agreement_is_with_the_weights_of_the_checkpoint(copy: Copy) -> None:
    report = check(copy("mha", dtype="float16"), probes=2, keep=(64, 5))
    for case in report.cases:
        shares = {s.stage: s.agreement for s in case.stages if s.agreement is not None}
        assert shares.keys() == {"stage1_set", "stage2_set"}
        assert all(0.7 < share <= 1 for share in shares.values())
    mean, worst = report.agreement("stage1_set")
    assert 0.99 < worst <= mean <= 1


def test_agreement_falls_when_other_tokens_are_kept(copy: Copy, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", "mha", seed=1)
    report = check(copy("mha", dtype="float16"), model=str(other))
    assert report.agreement("stage1_set")[1] < 0.95


@pytest.mark.slow
def test_layers_in_float32(copy: Copy) -> None:
    everything = ("language_model", "vision_tower", "multi_modal_projector", "lm_head")
    errors = []
    for layers in ((), WIDE, everything):
        folder = copy("mha", dtype="float16", fp32_layers=layers)
        report = check(folder)
        assert report.passed
        errors.append({s.stage: s.error for s in report.cases[0].stages})
        shutil.rmtree(folder)
    assert errors[2]["vision_features"] < errors[0]["vision_features"] / 2
    assert errors[2]["prefill_logits"] < errors[0]["prefill_logits"]


def test_every_probe_at_every_budget(copy: Copy) -> None:
    calls: list[tuple[int, int]] = []
    report = check(
        copy("mha"), probes=3, keep=(64, 5), progress=lambda done, total: calls.append((done, total))
    )
    assert report.passed
    assert [(case.picture, case.keep) for case in report.cases] == [
        (f"probe {index}", keep) for index in range(3) for keep in (64, 5)
    ]
    assert calls == [(done, 6) for done in range(6)]
    assert len({case.prompt for case in report.cases}) == 2


def test_the_bundles_own_budget_by_default(copy: Copy) -> None:
    assert [case.keep for case in check(copy("mha")).cases] == [64]


def test_the_report_is_written_into_the_bundle(copy: Copy, checkpoint: Callable[[str], Path]) -> None:
    folder = copy("mha")
    report = check(folder)
    written = json.loads((folder / "reports/check-onnxruntime.json").read_text())
    assert written["result"] == json.loads(json.dumps(report.to_dict()))
    assert written["passed"] is True
    assert written["settings"] == {"keep": [], "probes": ["probe 0"], "max_new_tokens": 4}
    assert written["result"]["reference"] == str(checkpoint("mha"))
    # A wheel's own version may lack the build that torch tells (+cu130).
    assert written["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    (folder / "parity.json").write_text("{}")  # of an older check
    assert check(folder).passed  # a report in the bundle does not damage it
    assert not (folder / "parity.json").exists()


def test_a_moved_checkpoint(copy: Copy, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("mha")
    moved = shutil.copytree(checkpoint("mha"), tmp_path / "moved")
    report = check(folder, model=str(moved))
    assert report.passed
    assert report.reference == str(moved)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(checkpoint("mha")), "/nowhere/at-all"))
    with pytest.raises(CheckpointError, match=r"check needs the source checkpoint; give it with model"):
        check(folder)


def test_another_architecture(copy: Copy, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(CheckpointError, match="has another architecture"):
        check(copy("mha"), model=str(checkpoint("gqa")))


def test_other_weights_of_the_same_shape_fail(copy: Copy, tmp_path: Path) -> None:
    folder = copy("mha")
    report = check(folder, model=str(make_checkpoint(tmp_path / "other", "mha", seed=1)))
    assert not report.passed
    assert first_failure(report) == "vision_features"
    [stored] = read_reports(open_bundle(folder))
    assert str(stored).endswith("Z: FAILED, 1 case; current")


@pytest.mark.parametrize(
    ("options", "keep", "message"),
    [
        ({"prune": False}, (64,), "built with prune=False; keep has no meaning"),
        ({}, (64, 289), "keep=289 is over this bundle's maximum of 288"),
        ({}, (0,), "keep must be at least 1"),
    ],
)
def test_budgets_that_the_bundle_has_not(
    copy: Copy, options: dict[str, bool], keep: tuple[int, ...], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        check(copy("mha", **options), keep=keep)


def test_changed_weights_are_refused(copy: Copy) -> None:
    folder = copy("mha")
    weights = folder / "graphs" / "decoder.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"decoder\.safetensors differs from the SHA-256"):
        check(folder)
