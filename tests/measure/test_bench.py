"""The benchmark end to end on a small bundle; its arithmetic against numbers made by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from star_export.answer.pipeline import load
from star_export.baseline import baseline_options
from star_export.bundle import open_bundle
from star_export.engines import Runtime
from star_export.errors import BundleError, SettingsError
from star_export.flops import Layout, prefill_flops, vision_flops
from star_export.measure.bench import MEASURES, BenchOptions, BenchReport, _others, _side_report, bench
from star_export.measure.sides import Memory, Sample, side_device
from star_export.specs import ImageLimits, Quantization

SIDES = ("pruned", "unpruned", "hf-sdpa")
PROMPT = "What is in the picture?"


@pytest.fixture(scope="module")
def options(bundle: Callable[..., Path], picture: Path) -> BenchOptions:
    return BenchOptions(
        bundle=bundle("mha"), image=picture, prompt=PROMPT, baseline=bundle("mha", prune=False),
        sides=SIDES, repeats=1, warmup=0, new_tokens=2, runtime=Runtime(threads=1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiled(options: BenchOptions, bundle: Callable[..., Path]) -> BenchReport:
    """Of a picture that is cut into tiles."""
    folders = {"bundle": bundle("onevision"), "baseline": bundle("onevision", prune=False)}
    return bench(replace(options, **folders, keep=20), lambda _step: None)


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def report(options: BenchOptions, steps: list[str]) -> BenchReport:
    return bench(options, steps.append)


def text_tokens(folder: Path, picture: Path) -> int:
    with load(folder) as pipeline:
        return pipeline.tokenize(PROMPT, pipeline.prepare(picture)).text_tokens


def test_every_side_was_measured(report: BenchReport, options: BenchOptions) -> None:
    assert [side.name for side in report.sides] == list(SIDES)
    for side in report.sides:
        assert set(side.median_ms) == set(side.speedup) == set(MEASURES)
        assert all(0 < ms < 60_000 for ms in side.median_ms.values())
        # TTFT holds reading the picture, vision and prefill.
        assert side.median_ms["ttft"] > side.median_ms["vision"] + side.median_ms["prefill"]
    assert (report.bundle, report.keep, report.repeats) == (str(options.bundle), 64, 1)
    assert report.text_tokens == text_tokens(options.bundle, options.image)


def test_speedups_are_times_over_the_pruned_bundles(report: BenchReport) -> None:
    pruned = report.sides[0].median_ms
    assert report.sides[0].speedup == dict.fromkeys(MEASURES, 1.0)
    for side in report.sides:
        for measure in MEASURES:
            assert side.speedup[measure] == pytest.approx(side.median_ms[measure] / pruned[measure])
            assert side.range_ms[measure] == (side.median_ms[measure],) * 2


def test_times_and_ratios_have_their_spread() -> None:
    """A neighbour slowed the machine in one round: medians of times and of ratios say different things."""

    def rounds(*prefill: float) -> list[Sample]:
        return [Sample(vision=1.0, prefill=ms, decode=2.0, ttft=ms + 1) for ms in prefill]

    samples = {"pruned": rounds(100, 400, 200), "unpruned": rounds(150, 380, 180)}
    side = _side_report("unpruned", samples, Memory(None, None), Runtime())
    assert side.median_ms == {"vision": 1.0, "prefill": 180, "decode": 2.0, "ttft": 181}
    assert side.range_ms == {"vision": (1, 1), "prefill": (150, 380), "decode": (2, 2), "ttft": (151, 381)}
    assert side.speedup["prefill"] == 0.95  # not 180 / 200
    assert side.speedup_range["prefill"] == (0.9, 1.5)
    assert side.peak_memory is None
    alone = _side_report("unpruned", {"unpruned": samples["unpruned"]}, Memory(7, 8), Runtime())
    assert (alone.speedup, alone.speedup_range) == ({}, {})
    assert (alone.peak_memory, alone.device_memory) == (7, 8)


def test_several_bundles_are_compared_with_the_first(
    options: BenchOptions, bundle: Callable[..., Path]
) -> None:
    few, full = bundle("mha", quantize="int4"), bundle("mha", prune=False)
    steps: list[str] = []
    several = replace(
        options, others=(few, full), sides=("pruned",), baseline=None, keep=(500, 30), repeats=2
    )
    report = bench(several, steps.append)
    assert [side.name for side in report.sides] == ["pruned", few.name, full.name]
    assert report.keep == 30
    assert steps[-6:] == [f"round {n} of 2: {side.name}" for n in (1, 2) for side in report.sides]
    pruned, *others = report.sides
    assert pruned.speedup == dict.fromkeys(MEASURES, 1.0)
    for other in others:
        low, high = other.speedup_range["prefill"]
        assert 0 < low <= other.speedup["prefill"] <= high
        assert other.peak_memory not in (None, pruned.peak_memory)


def test_bundles_that_cannot_be_compared(
    options: BenchOptions, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    def compared(*others: Path) -> None:
        bench(replace(options, others=others), lambda _step: None)

    with pytest.raises(SettingsError, match="holds another model than"):
        compared(bundle("onevision"))
    few = bundle("mha", quantize="int4")
    with pytest.raises(SettingsError, match="are not distinct, or are called as a side is"):
        compared(few, few)
    called = tmp_path / "unpruned"
    called.symlink_to(few)
    assert list(_others(replace(options, others=(called,)), open_bundle(few).spec)) == [few.name]


def test_peak_memory_is_each_sides_own(report: BenchReport) -> None:
    peaks = {side.name: side.peak_memory for side in report.sides}
    assert all(50e6 < peak < 4e9 for peak in peaks.values())
    assert len(set(peaks.values())) == 3
    assert {side.device_memory for side in report.sides} == {None}  # nothing ran on a GPU
    assert {side.device for side in report.sides} == {"cpu"}


@pytest.mark.parametrize(
    ("name", "backend", "torch_has_gpu", "device"),
    [
        ("pruned", "onnxruntime", True, "cpu"),
        ("hf-sdpa", "onnxruntime", True, "cpu"),
        ("pruned", "tensorrt", False, "cuda"),
        ("unpruned", "onnxruntime-cuda", False, "cuda"),
        ("hf-sdpa", "tensorrt", True, "cuda"),
        ("hf-eager", "tensorrt-rtx", False, "cpu"),
    ],
)
def test_hugging_face_runs_where_the_bundle_does(
    monkeypatch: pytest.MonkeyPatch, name: str, backend: str, torch_has_gpu: bool, device: str
) -> None:
    """With a fake answer of torch's: there is no GPU to ask."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: torch_has_gpu)
    assert side_device(name, Runtime(backend=backend)) == device


def test_a_backend_whose_engines_are_missing_stops_before_building(options: BenchOptions) -> None:
    steps: list[str] = []
    with pytest.raises(BundleError, match="has no tensorrt-rtx engines; make them"):
        bench(replace(options, runtime=Runtime(backend="tensorrt-rtx"), baseline=None), steps.append)
    assert steps == []


def test_kv_bytes(report: BenchReport) -> None:
    text = report.text_tokens
    one_token = 2 * 4 * 16 * 4  # key and value, heads, head size, float32
    assert report.kv_bytes == {
        "early": 3 * (518 + text) * one_token,
        "late": 3 * (64 + text) * one_token,
        "unpruned": 6 * (576 + text) * one_token,
    }


def test_a_picture_that_is_cut_counts_with_its_own_tokens(
    tiled: BenchReport, bundle: Callable[..., Path], picture: Path
) -> None:
    """400x300 pixels: 3x3 tiles behind the first, 11x15 patches without padding, scaled down to 7x10."""
    text = text_tokens(bundle("onevision"), picture)
    assert (tiled.tiles, tiled.image_tokens, tiled.text_tokens) == (10, 25 + 7 * 11, text)
    assert (tiled.entering, tiled.keep) == (86 + 7, 20)  # nine tenths of 95, and the newlines
    one_token = 2 * 2 * 16 * 4  # key and value, heads, head size, float32
    assert tiled.kv_bytes == {
        "early": (93 + text) * one_token,
        "late": 2 * (20 + text) * one_token,
        "unpruned": 3 * (102 + text) * one_token,
    }
    full = Layout(entering=102)
    model = load(bundle("onevision")).spec.model
    counted = prefill_flops(model.text, full, text_tokens=text, query_tokens=1)
    assert tiled.flops["full"] == counted
    assert tiled.flops["pruned"].exact < counted.exact
    assert tiled.vision_flops == vision_flops(model.vision, 10)
    assert [set(side.median_ms) for side in tiled.sides] == [set(MEASURES)] * 3


def test_the_baseline_takes_the_bundles_pictures(bundle: Callable[..., Path]) -> None:
    own = open_bundle(bundle("onevision"))
    limits = ImageLimits(max_images=2, max_tiles=4, max_image_tokens=60)
    own = replace(own, spec=replace(own.spec, images=limits))
    options = baseline_options(own, Path("unpruned"), source="anywhere", runtime=Runtime())
    assert (options.max_images, options.max_tiles, options.max_image_tokens) == (2, 4, 60)


def test_the_baseline_of_quantised_weights_has_them_too(bundle: Callable[..., Path]) -> None:
    own = open_bundle(bundle("mha"))
    how = Quantization(type="uint4", block=64, vision=True)
    own = replace(own, spec=replace(own.spec, quantization=how))
    options = baseline_options(own, Path("unpruned"), source="anywhere", runtime=Runtime())
    assert (options.quantize, options.quantize_block, options.quantize_vision) == ("uint4", 64, True)


def test_flops(report: BenchReport) -> None:
    pruned, full = report.flops["pruned"], report.flops["full"]
    assert 0.4 < pruned.exact / full.exact < 0.7
    assert 0.4 < pruned.fastv / full.fastv < 0.7


def test_progress_names_every_side(report: BenchReport, steps: list[str]) -> None:
    expected = [f"{what} {side}" for what in ("peak memory of", "loading") for side in SIDES]
    assert steps == expected + [f"round 1 of 1: {side}" for side in SIDES]


def test_report_is_json(report: BenchReport) -> None:
    data = json.loads(json.dumps(report.to_dict()))
    assert data["sides"][1]["range_ms"]["ttft"] == list(report.sides[1].range_ms["ttft"])
    assert data["sides"][1]["speedup"] == report.sides[1].speedup
    assert data["flops"]["pruned"]["exact"] == report.flops["pruned"].exact


def test_an_unpruned_bundle(options: BenchOptions) -> None:
    with pytest.raises(SettingsError, match="compares a pruned bundle with its baseline"):
        bench(replace(options, bundle=options.baseline), print)


def test_unknown_sides(options: BenchOptions) -> None:
    with pytest.raises(
        SettingsError, match="unknown side hf, trt; sides are pruned, unpruned, hf-sdpa, hf-eager"
    ):
        bench(replace(options, sides=("pruned", "trt", "hf")), print)


@pytest.mark.parametrize("keep", [0, 289, 518])
def test_a_budget_that_the_bundle_has_not(options: BenchOptions, keep: int) -> None:
    with pytest.raises(SettingsError, match="keep"):
        bench(replace(options, keep=keep), print)
