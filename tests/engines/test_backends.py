"""The table of backends, and sessions that are closed."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import star_export
from star_export import contract as names
from star_export.answer.pipeline import Pipeline
from star_export.bundle import Bundle, open_bundle
from star_export.engines import BACKENDS, Runtime, open_session
from star_export.engines.backends import OPENVINO, default_backend
from star_export.engines.session import Session
from star_export.engines.tensorrt.bindings import PRODUCTS
from star_export.errors import BundleError, InputError, PlatformError, SettingsError
from star_export.specs import DType
from star_export.validation.nonfinite import WatchedSession
from star_export.validation.runtimes import Recorder


@pytest.fixture(scope="module")
def opened(bundle: Callable[..., Path]) -> Bundle:
    return open_bundle(bundle("mha"))


def of_dtype(bundle: Bundle, dtype: DType) -> Bundle:
    return replace(bundle, spec=replace(bundle.spec, dtype=dtype))


def test_entries_are_found_by_their_names() -> None:
    assert {name: backend.name for name, backend in BACKENDS.items()} == {name: name for name in BACKENDS}
    assert [name for name, backend in BACKENDS.items() if backend.builds_engines] == list(PRODUCTS)
    on_cpus = [name for name, backend in BACKENDS.items() if backend.device == "cpu"]
    assert on_cpus == [Runtime().backend, OPENVINO]


def test_a_runtime_of_no_backend() -> None:
    with pytest.raises(SettingsError, match="unknown backend tensorrt-rx; did you mean tensorrt-rtx"):
        Runtime(backend="tensorrt-rx")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in PRODUCTS])
def test_element_types_are_checked_before_anything_is_loaded(opened: Bundle, backend: str) -> None:
    runtime = Runtime(backend=backend)
    for dtype in runtime.entry.dtypes:
        runtime.entry.check_bundle(of_dtype(opened, dtype), runtime)
    for use in (open_session, lambda bundle, runtime: runtime.check(bundle)):
        with pytest.raises(BundleError, match=r"bfloat16, which .* cannot run.*; .*dtype=float32"):
            use(of_dtype(opened, "bfloat16"), runtime)


@pytest.mark.parametrize("backend", list(PRODUCTS))
def test_engines_are_looked_for_before_anything_is_loaded(opened: Bundle, backend: str) -> None:
    runtime = Runtime(backend=backend)
    for use in (runtime.entry.facts, runtime.check):
        with pytest.raises(BundleError, match=f"has no {backend} engines; make them"):
            use(opened)


def test_only_the_default_backend_needs_nothing_of_a_machine() -> None:
    for backend in BACKENDS.values():
        parts = {part.name: part for part in backend.examine()}
        try:
            backend.check_machine()
        except PlatformError:
            assert not parts[f"backend {backend.name}"].works
            assert backend.device == "cuda" or backend.name == OPENVINO


def test_engines_are_preferred_where_a_bundle_has_them(opened: Bundle) -> None:
    assert default_backend(opened) == "onnxruntime"
    for engines, backend in (
        ({"tensorrt-rtx": {}}, "tensorrt-rtx"),
        ({"tensorrt-rtx": {}, "tensorrt": {}}, "tensorrt"),
    ):
        assert default_backend(replace(opened, manifest={**opened.manifest, "engines": engines})) == backend


def inner_sessions(session: Session) -> "list[weakref.ref[object]]":
    """ONNX Runtime's own objects, which bindings keep alive too."""
    return [weakref.ref(inner._sess) for inner in session._sessions.values()]  # type: ignore[attr-defined]


def test_a_closed_session_lets_go_of_its_graphs_though_caches_live(opened: Bundle, picture: Path) -> None:
    session = open_session(opened, Runtime(threads=1))
    pipeline = Pipeline(opened, session)
    pipeline.generate(picture, "What?", max_new_tokens=3).result()
    rows = session.allocate_caches(2).rows(0, 1)
    images = pipeline.prepare(picture)
    (vision,) = pipeline.steps.encode_images(images)
    logits = pipeline.steps.prefill(pipeline.tokenize("What?", images), vision, caches=rows).logits
    inner, values = inner_sessions(session), rows.values  # type: ignore[attr-defined]
    del vision
    assert values
    session.close()
    gc.collect()
    assert [ref() for ref in inner] == [None] * len(names.GRAPHS)
    assert dict(values) == {}
    assert logits.shape == (opened.spec.model.text.vocab_size,)


def test_what_is_closed_is_of_no_use(opened: Bundle, picture: Path) -> None:
    with star_export.load(opened.folder, threads=1) as pipeline:
        answer = pipeline.generate(picture, "What?", max_new_tokens=3)
    closed = "this session is closed, and what it held is gone; open the bundle again"
    for use in (
        answer.result,
        pipeline.session.allocate_caches,
        lambda: pipeline.generate(picture, "What?").result(),
        lambda: pipeline.session.run(names.VISION, {}),
    ):
        with pytest.raises(InputError, match=closed):
            use()
    pipeline.close()  # a second time does nothing


@pytest.mark.parametrize("wrap", [Recorder, lambda session: WatchedSession(session, session.bundle)])
def test_wrappers_close_what_is_inside(opened: Bundle, wrap: Callable[[Session], Session]) -> None:
    session = open_session(opened, Runtime(threads=1))
    with wrap(session) as outer:
        assert outer.max_batch is session.max_batch
    with pytest.raises(InputError, match="closed"):
        session.allocate_caches()
