import dataclasses
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import star_export
from star_export import contract as names
from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import DecodeState
from star_export.bundle import open_bundle
from star_export.engines import Runtime, open_session
from star_export.engines.onnxruntime import OnnxRuntimeArray, OnnxRuntimeSession
from star_export.engines.session import Caches
from star_export.errors import BundleError, PlatformError, SettingsError

BundleOf = Callable[..., Path]
PROMPTS = ("What is in the picture?", "Where is the dog, and what is written on the sign?")


@pytest.fixture(scope="module", params=["mha", "gqa"])
def folder(request: pytest.FixtureRequest, bundle: BundleOf) -> Path:
    return bundle(request.param)


def prefilled(pipeline: Pipeline, picture: Path, prompt: str, caches: Caches | None = None) -> DecodeState:
    images = pipeline.prepare(picture)
    visions = pipeline.steps.encode_images(images)
    return pipeline.steps.prefill(pipeline.tokenize(prompt, images), *visions, keep=64, caches=caches)


def test_caches_have_the_group_capacities(folder: Path) -> None:
    pipeline = star_export.load(folder)
    spec, caches = pipeline.spec, pipeline.session.allocate_caches(batch=3)
    for layer in range(spec.model.text.num_layers):
        capacity = spec.groups[layer >= spec.groups[1].first].capacity
        for name in names.past_names(layer):
            cache = caches.numpy(name)
            assert cache.shape == (3, spec.model.text.num_kv_heads, capacity, spec.model.text.head_dim)
            assert not cache.any()
    assert spec.groups[1].capacity < spec.groups[0].capacity


def test_caches_are_written_in_place(folder: Path, picture: Path) -> None:
    pipeline = star_export.load(folder)
    state = prefilled(pipeline, picture, PROMPTS[0])
    pointers = {name: value.data_ptr() for name, value in state.caches.values.items()}  # type: ignore[attr-defined]
    late = names.past_names(pipeline.spec.groups[1].first)[0]
    before = state.caches.numpy(late)
    pipeline.steps.decode(state, 7)
    after = state.caches.numpy(late)
    assert pointers == {name: value.data_ptr() for name, value in state.caches.values.items()}  # type: ignore[attr-defined]
    changed = np.flatnonzero((before != after).any(axis=(0, 1, 3)))
    assert changed.tolist() == [state.lengths[-1] - 1]  # one row, the new token's
    assert not after[:, :, state.lengths[-1] :].any()


def test_caches_are_resized_with_what_is_in_them(folder: Path, picture: Path) -> None:
    """A sequence goes on where it was, in another row of longer and then of shorter caches."""
    pipeline = star_export.load(folder, threads=1)
    state, session = prefilled(pipeline, picture, PROMPTS[0]), pipeline.session
    first, later = 7, 11
    needed = tuple(session.capacities((state.lengths + 2).tolist()))
    caches = session.allocate_caches(3, needed)
    moved = prefilled(pipeline, picture, PROMPTS[0], caches.rows(2, 3))
    for value in caches.values.values():  # type: ignore[attr-defined]
        value.numpy()[:2] = np.nan
    session.resize_caches(caches, 2, pipeline.spec.capacities, rows=[2])
    moved = dataclasses.replace(moved, caches=caches.rows(0, 1))
    for token, (batch, capacities) in ((first, (5, needed)), (later, (1, pipeline.spec.capacities))):
        pipeline.steps.decode(state, token)
        pipeline.steps.decode(moved, token)
        np.testing.assert_allclose(moved.logits, state.logits, rtol=0, atol=2e-4)
        for name in names.past_names(0):
            assert not caches.numpy(name)[1:].any()
        session.resize_caches(caches, batch, capacities, rows=[0])
        assert caches.numpy(names.past_names(0)[0]).shape[::2] == (batch, capacities[0])


def test_resizing_holds_one_tensor_twice(folder: Path) -> None:
    session = star_export.load(folder, threads=1).session
    rows, most = 4, session.spec.capacities
    short = tuple(capacity // 2 for capacity in most)
    tracemalloc.start()
    try:
        caches = session.allocate_caches(rows, short)
        for capacities in (most, short, most):
            tracemalloc.reset_peak()
            session.resize_caches(caches, rows, capacities, rows=range(rows))
            held, peak = tracemalloc.get_traced_memory()
            one = caches.numpy(names.past_names(0)[0]).nbytes
            assert peak - rows * session.spec.slot_bytes < 1.1 * one
            assert held < 1.01 * rows * session.spec.sequence_bytes(capacities) + 1e5
    finally:
        tracemalloc.stop()


def test_decode_of_a_batch_equals_single_sequences(folder: Path, picture: Path) -> None:
    """Two sequences of different length decode together as they do alone."""
    states, alone = [], []
    for prompt in PROMPTS:
        pipeline = star_export.load(folder)
        state = prefilled(pipeline, picture, prompt)
        copy = {name: value.numpy().copy() for name, value in state.caches.values.items()}  # type: ignore[attr-defined]
        states.append((dataclasses.replace(state), copy))
        pipeline.steps.decode(state, 7)
        alone.append(state.logits)
    session = open_session(open_bundle(folder))
    caches = session.allocate_caches(batch=2)
    for name in caches.values:  # type: ignore[attr-defined]
        both = np.concatenate([copy[name] for _, copy in states])
        caches.values[name] = ort.OrtValue.ortvalue_from_numpy(both)  # type: ignore[attr-defined]
    lengths = np.stack([state.lengths for state, _ in states], axis=1)  # [groups, 2]
    feeds = {
        names.INPUT_IDS: np.array([[7], [7]]),
        names.POSITION_IDS: np.array([[state.position] for state, _ in states]),
        **dict(zip(("early_lengths", "late_lengths"), lengths, strict=True)),
    }
    together = session.run(names.DECODE, feeds, caches)[names.LOGITS].numpy()
    np.testing.assert_allclose(together, np.stack(alone), rtol=0, atol=2e-4)


def test_results_outlive_the_next_run(folder: Path, picture: Path) -> None:
    pipeline = star_export.load(folder)
    (image,) = pipeline.prepare(picture)
    first = pipeline.steps.encode_image(image)
    kept = first.features.numpy()
    assert kept.flags.owndata
    state = pipeline.steps.prefill(pipeline.tokenize(PROMPTS[0], [image]), first, keep=8)
    assert state.logits.base.flags.owndata  # type: ignore[union-attr]
    pipeline.steps.encode_image(dataclasses.replace(image, pixels=-image.pixels))
    assert np.array_equal(first.features.numpy(), kept)


def test_the_best_token_is_that_of_the_logits(folder: Path, picture: Path) -> None:
    pipeline = star_export.load(folder)
    state = prefilled(pipeline, picture, PROMPTS[0])
    for _ in range(3):
        token = state.best_token()
        assert token == state.logits.argmax()
        pipeline.steps.decode(state, token)


def test_argmax_tells_rows_that_have_no_finite_largest() -> None:
    nan, inf = np.nan, np.inf
    rows = [
        [1, 3, 3],
        [2, 2, 2],
        [-0.0, 0, -0.0],
        [-inf, -5, -5],
        [9, nan, 1],
        [nan] * 3,
        [1, 2, inf],
        [-inf] * 3,
    ]
    array = OnnxRuntimeArray(ort.OrtValue.ortvalue_from_numpy(np.array(rows, np.float32)))
    assert array.argmax().dtype == np.int64
    assert array.argmax().tolist() == [1, 0, 0, 1, -1, -1, -1, -1]


def test_threads_do_not_change_the_answer(folder: Path, picture: Path) -> None:
    answers = [
        star_export.load(folder, threads=threads)
        .generate(picture, PROMPTS[0], max_new_tokens=6)
        .result()
        .token_ids
        for threads in (1, 2)
    ]
    assert answers[0] == answers[1]


def test_unknown_backend(folder: Path) -> None:
    with pytest.raises(SettingsError, match="unknown backend tensorr; did you mean tensorrt"):
        star_export.load(folder, backend="tensorr")
    with pytest.raises(SettingsError, match="backends are onnxruntime, onnxruntime-cuda, openvino, ten"):
        star_export.load(folder, backend="mlx")


def test_without_cuda_the_package_that_has_it_is_named(folder: Path) -> None:
    with pytest.raises(PlatformError, match=r"has no CUDAExecutionProvider; run: .*onnxruntime-gpu"):
        open_session(open_bundle(folder), Runtime(backend="onnxruntime-cuda"))


def test_a_graph_in_the_place_of_another(bundle: BundleOf, tmp_path: Path) -> None:
    opened = open_bundle(bundle("mha"))
    copy = dataclasses.replace(opened, folder=Path(shutil.copytree(opened.folder, tmp_path / "copy")))
    shutil.copyfile(copy.graph_path("vision"), copy.graph_path("prefill"))
    with pytest.raises(BundleError, match=r"prefill.onnx lacks image_features, image_positions, input_ids"):
        open_session(copy)


def test_a_graph_that_fails_when_it_runs(bundle: BundleOf) -> None:
    session = open_session(open_bundle(bundle("mha")))
    feeds = {names.PIXEL_VALUES: np.zeros((1, 3, 8, 8), np.float32), names.STAGE1_SLOTS: np.arange(4)}
    with pytest.raises(BundleError, match=r"ONNX Runtime .* cannot run .*vision.onnx: .*invalid dimensions"):
        session.run(names.VISION, feeds)


def test_an_old_runtime_is_slow_with_8_bits(
    bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = bundle("mha", quantize="int4")  # of which lm_head has 8
    caplog.clear()  # of the build
    OnnxRuntimeSession(open_bundle(folder), threads=1).close()
    assert not caplog.messages
    monkeypatch.setattr("onnxruntime.__version__", "1.24.4")
    OnnxRuntimeSession(open_bundle(folder), threads=1).close()
    [message] = caplog.messages
    assert message.endswith("of 8 bits; run: pip install 'onnxruntime>=1.25'")
