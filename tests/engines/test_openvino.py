"""OpenVINO beside ONNX Runtime: the same bundles, the same pictures, the same kept tokens."""

import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from star_export import contract as names
from star_export.answer.pipeline import Pipeline, open_pipeline
from star_export.bundle import open_bundle
from star_export.engines import Runtime, open_session
from star_export.engines.openvino import OpenVinoArray
from star_export.errors import BundleError, InputError, NonFiniteError, PlatformError
from star_export.specs.quantization import Quantization
from star_export.validation.verdicts import Tolerances

pytest.importorskip("openvino", reason="pip install 'star-export[openvino]'")

BundleOf = Callable[..., Path]
QUESTION, MORE = "What color is the square?", (7, 11, 5)
EXACT, ROUNDED = Tolerances.load("float32"), Tolerances.load("bfloat16")

BUNDLES: dict[str, tuple[str, dict[str, Any]]] = {
    "mha": ("mha", {}),
    "gqa": ("gqa", {}),
    "unpruned": ("mha", {"prune": False}),
    "tiles": ("next", {}),
    "onevision": ("onevision", {}),
    "int8": ("gqa", {"quantize": "int8"}),
    "int4": ("mini", {"quantize": "int4"}),
    "uint4": ("mha", {"quantize": "uint4"}),
}
OPENVINO = Runtime(backend="openvino", threads=1)


@pytest.fixture(scope="module", params=BUNDLES)
def folder(request: pytest.FixtureRequest, bundle: BundleOf) -> Path:
    preset, options = BUNDLES[request.param]
    return bundle(preset, **options)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the root mean square, as in ``tolerances``."""
    return float(np.abs(found - expected).max() / np.sqrt(np.mean(np.square(expected, dtype=np.float64))))


def answered(pipeline: Pipeline, picture: Path) -> dict[str, Any]:
    """Everything that the graphs give for one question, and for tokens after it."""
    images = pipeline.prepare(picture)
    (vision,) = pipeline.steps.encode_images(images)
    found: dict[str, Any] = {"stage1": vision.indices.copy(), "features": vision.features.numpy()}
    state = pipeline.steps.prefill(pipeline.tokenize(QUESTION, images), vision, new_tokens=len(MORE) + 1)
    found |= {"prefill": state.logits, "stages": [s.copy() for s in state.stage_positions]}
    for token in MORE:
        pipeline.steps.decode(state, token)
    found["decode"] = state.logits
    groups = zip(pipeline.spec.groups, state.lengths, strict=True)
    found["caches"] = [
        state.caches.numpy(name)[:, :, :length]
        for group, length in groups
        for name in names.past_names(group.last)
    ]
    return found


def test_float32_is_that_of_onnx_runtime(folder: Path, picture: Path) -> None:
    expected, found = (
        answered(open_pipeline(folder, Runtime(backend=backend, threads=1, exact=True)), picture)
        for backend in ("onnxruntime", "openvino")
    )
    np.testing.assert_array_equal(found["stage1"], expected["stage1"])
    for mine, wanted in zip(found["stages"], expected["stages"], strict=True):
        np.testing.assert_array_equal(mine, wanted)
    assert error(found["features"], expected["features"]) < EXACT.vision_features
    assert error(found["prefill"], expected["prefill"]) < EXACT.prefill_logits
    assert error(found["decode"], expected["decode"]) < EXACT.decode_logits
    for mine, wanted in zip(found["caches"], expected["caches"], strict=True):
        assert error(mine, wanted) < EXACT.kv_cache


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_as_users_run_it_a_trained_model_keeps_and_says_the_same(
    bundle: BundleOf, quantize: str | None
) -> None:
    """bfloat16 where the machine has it, activations in 8 bits where weights are in few."""
    folder, picture = bundle("mini", quantize=quantize), Path(__file__).parents[2] / "docs/shapes.png"
    exact = open_pipeline(folder, Runtime(threads=1, exact=True))
    rounded = open_pipeline(folder, Runtime(backend="openvino", threads=1))
    expected, found = (answered(pipeline, picture) for pipeline in (exact, rounded))
    for mine, wanted in zip(found["stages"], expected["stages"], strict=True):
        assert len(np.intersect1d(mine, wanted)) >= 0.9 * len(wanted)  # measured 0.948
    both, *places = np.intersect1d(found["stage1"], expected["stage1"], return_indices=True)
    assert len(both) >= 0.99 * len(expected["stage1"])  # measured 0.998
    mine, wanted = (f["features"][0, rows] for f, rows in zip((found, expected), places, strict=True))
    assert error(mine, wanted) < ROUNDED.vision_features
    assert error(found["prefill"], expected["prefill"]) < ROUNDED.prefill_logits
    assert error(found["decode"], expected["decode"]) < ROUNDED.decode_logits
    texts = {p.generate(picture, QUESTION, max_new_tokens=4).result().text for p in (exact, rounded)}
    assert len(texts) == 1


def test_sequences_of_other_lengths_are_decoded_together_as_alone(bundle: BundleOf, picture: Path) -> None:
    pipeline = open_pipeline(bundle("gqa"), replace(OPENVINO, exact=True))
    steps, session = pipeline.steps, pipeline.session
    images = pipeline.prepare(picture)
    (vision,) = steps.encode_images(images)
    together, alone, asked = session.allocate_caches(2), [], []
    for row, text in enumerate((QUESTION, "What is this, and where was it seen before?")):
        tokens = pipeline.tokenize(text, images)
        state = steps.prefill(tokens, vision, caches=together.rows(row, row + 1))
        asked.append((MORE[row], state.position, *state.lengths))
        state = steps.prefill(tokens, vision)
        steps.decode(state, MORE[row])
        alone.append(state.logits)
    ids, positions, *lengths = np.array(asked).T
    feeds = {names.INPUT_IDS: ids[:, None], names.POSITION_IDS: positions[:, None]}
    feeds |= dict(zip(names.lengths_names(pipeline.spec), lengths, strict=True))
    found = session.run(names.DECODE, feeds, together)[names.LOGITS].numpy()
    assert error(found, np.stack(alone)) < EXACT.decode_logits


def test_two_threads_decode_and_each_has_its_own_result(bundle: BundleOf, picture: Path) -> None:
    """What is appended to a conversation that arrives is decoded beside the steps of others."""
    pipeline = open_pipeline(bundle("gqa"), OPENVINO)
    images = pipeline.prepare(picture)
    (vision,) = pipeline.steps.encode_images(images)
    tokens = pipeline.tokenize(QUESTION, images)
    mine, others = (
        pipeline.steps.prefill(tokens, vision, caches=pipeline.session.allocate_caches()) for _ in range(2)
    )
    pipeline.steps.decode(mine, MORE[0])
    before = mine.logits
    with ThreadPoolExecutor(1) as beside:
        beside.submit(pipeline.steps.decode, others, MORE[1]).result()
    assert np.array_equal(mine.logits, before)
    assert not np.array_equal(others.logits, before)


@pytest.mark.parametrize("exact", [True, False])
def test_a_nan_is_told_and_is_not_there_for_the_next_request(
    bundle: BundleOf, picture: Path, *, exact: bool
) -> None:
    """OpenVINO's own conversion of attention turns it into zeros, and the answer into a wrong one."""
    pipeline = open_pipeline(bundle("mha"), replace(OPENVINO, exact=exact))
    images = pipeline.prepare(picture)
    (vision,) = pipeline.steps.encode_images(images)
    tokens, good = pipeline.tokenize(QUESTION, images), vision.copied("float32")
    token = pipeline.steps.prefill(tokens, good, new_tokens=2).best_token()
    spoilt = replace(good, features=np.full_like(good.features, np.nan))
    with pytest.raises(NonFiniteError):
        pipeline.steps.prefill(tokens, spoilt, new_tokens=2).best_token()
    assert pipeline.steps.prefill(tokens, good, new_tokens=2).best_token() == token


def test_caches_take_back_what_they_gave(bundle: BundleOf) -> None:
    """Where the machine multiplies in bfloat16, they keep that, and numpy has it as float32."""
    session = open_session(open_bundle(bundle("mha")), OPENVINO)
    caches, (name, _) = session.allocate_caches(), names.past_names(0)
    whole = caches.numpy(name)
    values = np.random.default_rng(0).normal(size=(*whole.shape[:2], 3, whole.shape[3])).astype(np.float32)
    caches.fill(name, values)
    given = caches.numpy(name)[:, :, :3]
    np.testing.assert_allclose(given, values, rtol=2**-8)
    caches.zero()
    assert not caches.numpy(name).any()
    caches.fill(name, given)
    np.testing.assert_array_equal(caches.numpy(name)[:, :, :3], given)


def test_the_best_of_rows_without_a_number() -> None:
    rows = np.array([[1, 3, 3], [0, np.nan, 1], [-np.inf] * 3], np.float32)
    assert OpenVinoArray(rows).argmax().tolist() == [1, -1, -1]


def test_a_closed_session(bundle: BundleOf) -> None:
    session = open_session(open_bundle(bundle("mha")), OPENVINO)
    session.close()
    for use in (session.allocate_caches, lambda: session.run(names.VISION, {})):
        with pytest.raises(InputError, match="this session is closed"):
            use()


def test_without_openvino(bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino.frontend.onnx", None)
    (part,) = OPENVINO.entry.examine()
    assert not part.works
    for use in (open_session, lambda opened, runtime: runtime.check(opened)):
        with pytest.raises(PlatformError, match=r"run: pip install 'star-export\[openvino\]'"):
            use(open_bundle(bundle("mha")), OPENVINO)


def test_an_embedding_in_few_bits(bundle: BundleOf) -> None:
    opened = open_bundle(bundle("mha"))
    few = Quantization(type="int8", block=32, embedding=True)
    with pytest.raises(BundleError, match=r"embedding in few bits, which OpenVINO cannot run; build without"):
        OPENVINO.check(replace(opened, spec=replace(opened.spec, quantization=few)))


def test_a_graph_that_is_none(bundle: BundleOf, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle("mha"), tmp_path / "bundle")
    opened = open_bundle(folder)
    graph = opened.graph_path(names.PREFILL)
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"OpenVINO .* cannot load .*prefill\.onnx"):
        open_session(opened, OPENVINO)
