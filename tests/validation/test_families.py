"""check_bundle on every family, tower and decoder, with one and several pictures."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.answer.pipeline import load
from star_export.errors import InputError, SettingsError
from star_export.validation.check import check_bundle
from star_export.validation.probes import SIZES, budgets_of, choose_probes, make_probes
from star_export.validation.report import ParityReport
from star_export.validation.runtimes import compare_runtimes

BundleOf = Callable[..., Path]


@pytest.fixture
def copy(bundle: BundleOf, tmp_path: Path) -> BundleOf:
    """A bundle for up to three pictures, of one's own: check writes its report into it."""
    return lambda preset, **options: shutil.copytree(
        bundle(preset, max_images=3, **options), tmp_path / "bundle"
    )


def failures(report: ParityReport) -> list[tuple[str, str, str]]:
    return [(c.name, s.stage, s.detail) for c in report.cases for s in c.stages if s.status == "fail"]


#: Those of which both families' and every decoder's bundles are proven in every run, the others by
#: `make test-slow`.
PRUNED = {
    ("full", "float32"),
    ("next", "float32"),
    ("onevision", "float32"),
    ("interleave", "float16"),
    ("next-mistral", "float16"),
    ("onevision", "float16"),
}
PRESETS = ("full", "feature-layers", "interleave", "next", "next-mistral", "next-llama3", "onevision")
CASES = [
    pytest.param(preset, dtype, marks=() if (preset, dtype) in PRUNED else pytest.mark.slow)
    for preset in PRESETS
    for dtype in ("float32", "float16")
]


@pytest.mark.parametrize(("preset", "dtype"), CASES)
def test_pruned_bundles_pass(copy: BundleOf, preset: str, dtype: str) -> None:
    report = check_bundle(copy(preset, dtype=dtype), probes=4, keep=(40, 24, 5), max_new_tokens=4)
    assert failures(report) == []
    assert report.nonfinite is None
    assert [case.keep for case in report.cases] == 4 * [40, 24, 5]
    assert [len(probe.pictures) for probe in make_probes(4, max_images=3)] == [1, 3, 1, 2]
    assert {found.stage: found.status for found in report.batches} == {
        "decode_batch_2": "pass",
        "decode_batch_4": "pass",
    }
    if dtype == "float16":
        assert 0.8 < report.agreement("stage1_set")[1] <= 1


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param("interleave", marks=pytest.mark.slow),
        pytest.param("next", marks=pytest.mark.slow),
        "onevision",
    ],
)
def test_unpruned_answers_are_those_of_generate(copy: BundleOf, preset: str) -> None:
    """Landscape, portrait, square, very long and tiny pictures, alone and up to three together."""
    report = check_bundle(copy(preset, prune=False), probes=20, max_new_tokens=4)
    assert failures(report) == []
    greedy = [stage for case in report.cases for stage in case.stages if stage.stage == "greedy_tokens"]
    assert [stage.status for stage in greedy] == 20 * ["pass"]
    probes = make_probes(20, max_images=3)
    assert {probe.pictures[0].size for probe in probes if len(probe.pictures) == 1} == set(SIZES)
    assert {len(probe.pictures) for probe in probes} == {1, 2, 3}
    assert {case.stages[-2].stage for case in report.cases} == {"append_logits"}


def test_all_runtimes_agree_on_several_pictures(bundle: BundleOf) -> None:
    report = compare_runtimes(bundle("onevision", max_images=3), probes=2)
    assert report.passed
    graphs = [output.graph for output in report.outputs if output.output in ("image_features", "logits")]
    assert graphs == ["vision", "prefill", "decode", "decode", *3 * ["vision"], "prefill", "decode", "decode"]


def test_probes_fit_the_bundle(bundle: BundleOf) -> None:
    pipeline = load(bundle("next", max_images=3), threads=1)
    assert len(choose_probes(3, pipeline)) == 3
    limits = pipeline.spec.images
    assert (limits.max_images, max(len(probe.pictures) for probe in choose_probes(3, pipeline))) == (3, 3)
    # Room for a tile and a grid of three: of these pictures the very long ones, alone.
    object.__setattr__(limits, "max_tiles", 4)
    found = choose_probes(3, pipeline)
    assert [picture.size for probe in found for picture in probe.pictures] == 3 * [SIZES[3]]
    object.__setattr__(limits, "max_image_tokens", 16)
    with pytest.raises(SettingsError, match="no built-in picture fits this bundle's limits; give one"):
        choose_probes(3, pipeline)
    with pytest.raises(InputError, match="a picture has 5 tiles, this bundle takes 4"):
        budgets_of(make_probes(1)[0], pipeline, (5,))


def test_a_budget_above_what_a_picture_has_is_what_it_has(bundle: BundleOf) -> None:
    pipeline = load(bundle("interleave", dtype="float16", max_images=3), threads=1)
    one, several, *_ = make_probes(2, max_images=3)
    entering = pipeline.spec.image_tokens
    assert budgets_of(one, pipeline, (5, 40)) == [5, min(40, entering)]
    assert budgets_of(several, pipeline, ()) == [pipeline.spec.keep]
