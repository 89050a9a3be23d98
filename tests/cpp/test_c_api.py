"""The C ABI, called as another language would: through ctypes."""

import ctypes
import threading
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import pytest

from star_export.answer.pipeline import load
from star_export.answer.sampling import Sampling
from tests.cpp.talker import BUILD

LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
SHAPES = Path(__file__).parents[2] / "docs/shapes.png"
SETTINGS, BUNDLE, INPUT, PLATFORM, NON_FINITE, CANCELLED = range(1, 7)


class Options(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("backend", c_char_p), ("onnxruntime", c_char_p), ("plugin_library", c_char_p),
        ("threads", c_int32), ("verify", c_int32),
    ]  # fmt: skip


class Image(ctypes.Structure):
    _fields_ = [("path", c_char_p), ("data", c_char_p), ("size", c_size_t)]


OnText = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)


class Settings(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("keep", POINTER(c_int64)), ("keep_count", c_size_t), ("max_new_tokens", c_int64),
        ("temperature", c_double), ("top_p", c_double), ("seed", POINTER(c_uint64)),
        ("stop", POINTER(c_char_p)), ("stop_count", c_size_t),
        ("end_tokens", POINTER(c_char_p)), ("end_token_count", c_size_t),
        ("on_text", OnText), ("context", c_void_p), ("cancellation", c_void_p),
    ]  # fmt: skip


class Timings(ctypes.Structure):
    _fields_ = [
        ("vision", c_double), ("prefill", c_double), ("total", c_double), ("decode", POINTER(c_double)),
        ("decode_count", c_size_t),
    ]  # fmt: skip


class Failed(NamedTuple):
    kind: int
    message: str


@pytest.fixture(scope="session")
def library() -> Any:
    path = BUILD / "libstar.so"
    if not path.is_file():
        pytest.skip(f"{path} is not there: run `make test-cpp`, or set STAR_EXPORT_CPP to its build folder")
    library = ctypes.CDLL(str(path))
    library.star_abi_version.restype = ctypes.c_uint32
    for name in ("pipeline_open", "pipeline_generate", "cancellation_new"):
        getattr(library, f"star_{name}").restype = c_void_p
    library.star_error_message.restype = library.star_result_finish_reason.restype = c_char_p
    library.star_result_text.restype = c_void_p
    library.star_result_prompt_tokens.restype = c_int64
    library.star_result_timings.restype = Timings
    for name in ("token_ids", "stage1_indices", "stage2_indices"):
        getattr(library, f"star_result_{name}").restype = POINTER(c_int64)
    return library


def failure(library: Any, error: int | None) -> Failed | None:
    if error is None:
        return None
    kind = library.star_error_kind_of(c_void_p(error))
    message = library.star_error_message(c_void_p(error)).decode()
    library.star_error_free(c_void_p(error))
    return Failed(kind, message)


def open_pipeline(library: Any, folder: Path, **options: Any) -> tuple[c_void_p, Failed | None]:
    given = Options(ctypes.sizeof(Options), onnxruntime=str(LIBRARY).encode(), threads=1)
    for name, value in options.items():
        setattr(given, name, value)
    pipeline = c_void_p()
    error = library.star_pipeline_open(str(folder).encode(), byref(given), byref(pipeline))
    return pipeline, failure(library, error)


@pytest.fixture
def pipeline(library: Any, bundle: Any) -> Iterator[c_void_p]:
    pipeline, failed = open_pipeline(library, bundle("mini", max_images=3))
    assert failed is None
    yield pipeline
    library.star_pipeline_close(pipeline)


def generate(
    library: Any,
    pipeline: c_void_p,
    *images: Image,
    prompt: str = "What color is the square?",
    **settings: Any,
) -> dict[str, Any] | Failed:
    given = Settings(ctypes.sizeof(Settings))
    for name, value in settings.items():
        setattr(given, name, value)
    result = c_void_p()
    array = (Image * len(images))(*images)
    error = library.star_pipeline_generate(
        pipeline, array, c_size_t(len(images)), prompt.encode(), byref(given), byref(result)
    )
    failed = failure(library, error)
    return _read(library, result) if failed is None else failed


def _read(library: Any, result: c_void_p) -> dict[str, Any]:
    size, count = c_size_t(), c_size_t()
    text = library.star_result_text(result, byref(size))
    found: dict[str, Any] = {"text": ctypes.string_at(text, size.value).decode()}
    for name in ("token_ids", "stage1_indices", "stage2_indices"):
        values = getattr(library, f"star_result_{name}")(result, byref(count))
        found[name] = tuple(values[: count.value])
    found["finish_reason"] = library.star_result_finish_reason(result).decode()
    found["prompt_tokens"] = library.star_result_prompt_tokens(result)
    spent = library.star_result_timings(result)
    assert spent.total >= spent.vision + spent.prefill > 0
    assert spent.decode_count == len(found["token_ids"]) - 1
    library.star_result_free(result)
    return found


def of_file(path: Path) -> Image:
    return Image(path=str(path).encode())


def of_bytes(path: Path) -> Image:
    content = path.read_bytes()
    return Image(data=content, size=len(content))


def test_version(library: Any) -> None:
    header = (Path(__file__).parents[2] / "engines/cpp/include/star_c.h").read_text()
    assert f"#define STAR_ABI_VERSION {library.star_abi_version()}\n" in header


def test_answers(library: Any, pipeline: c_void_p, bundle: Any) -> None:
    python = load(bundle("mini", max_images=3), threads=1)

    def expected(count: int, **settings: Any) -> dict[str, Any]:
        result = python.generate([SHAPES] * count, "What color is the square?", **settings).result().to_dict()
        return {name: value for name, value in result.items() if name != "timings_ms"}

    assert generate(library, pipeline, of_file(SHAPES)) == expected(1)
    assert generate(library, pipeline, of_bytes(SHAPES), of_file(SHAPES)) == expected(2)
    keep = (c_int64 * 2)(200, 29)
    assert generate(library, pipeline, of_file(SHAPES), keep=keep, keep_count=1) == expected(1, keep=200)
    assert generate(library, pipeline, of_file(SHAPES), keep=keep, keep_count=2) == expected(
        1, keep=(200, 29)
    )
    for seed in range(5):
        sampling = Sampling(temperature=2.0, top_p=0.98, seed=seed)
        given = {
            "temperature": 2.0,
            "top_p": 0.98,
            "seed": ctypes.pointer(c_uint64(seed)),
            "max_new_tokens": 9,
        }
        assert generate(library, pipeline, of_file(SHAPES), **given) == expected(
            1, sampling=sampling, max_new_tokens=9
        )


def test_streaming(library: Any, pipeline: c_void_p) -> None:
    pieces = []

    def on_text(context: int, text: int, size: int) -> int:
        pieces.append((context, ctypes.string_at(text, size)))
        return 0

    given = {"temperature": 3.0, "seed": ctypes.pointer(c_uint64(1)), "context": 77}
    found = generate(library, pipeline, of_file(SHAPES), on_text=OnText(on_text), **given)
    assert isinstance(found, dict)
    assert b"".join(text for _, text in pieces).decode() == found["text"]
    assert {context for context, _ in pieces} == {77}
    assert len(pieces) > 1


def test_cancellation(library: Any, pipeline: c_void_p) -> None:
    cancelled = Failed(CANCELLED, "the answer was cancelled before its end")
    stop = OnText(lambda context, text, size: 1)
    given = {"temperature": 3.0, "seed": ctypes.pointer(c_uint64(1))}
    assert generate(library, pipeline, of_file(SHAPES), on_text=stop, **given) == cancelled
    cancellation = c_void_p()
    assert library.star_cancellation_new(byref(cancellation)) is None

    def from_another_thread(context: int, text: int, size: int) -> int:
        thread = threading.Thread(target=library.star_cancellation_cancel, args=(cancellation,))
        thread.start()
        thread.join()
        return 0

    given |= {"on_text": OnText(from_another_thread), "cancellation": cancellation}
    assert generate(library, pipeline, of_file(SHAPES), **given) == cancelled
    assert generate(library, pipeline, of_file(SHAPES), cancellation=cancellation) == cancelled
    library.star_cancellation_free(cancellation)
    assert isinstance(generate(library, pipeline, of_file(SHAPES)), dict)


def test_threads_wait_for_each_other(library: Any, pipeline: c_void_p) -> None:
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(generate(library, pipeline, of_file(SHAPES))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(answer == found[0] for answer in found)


def test_errors(library: Any, pipeline: c_void_p, tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    assert generate(library, pipeline, of_file(missing)) == Failed(
        INPUT, f"{missing} does not exist; give the path of a picture"
    )
    assert generate(library, pipeline) == Failed(INPUT, "no picture is given; a question needs one at least")
    too_many = generate(library, pipeline, of_file(SHAPES), max_new_tokens=99999)
    assert isinstance(too_many, Failed)
    assert too_many.kind == SETTINGS
    assert too_many.message.startswith("max_new_tokens must be from 1 to 32, got 99999")
    old = generate(library, pipeline, of_file(SHAPES), size=8)
    assert isinstance(old, Failed)
    assert old.message.startswith("star_settings.size is 8, expected sizeof")
    assert generate(library, pipeline, Image()) == Failed(
        SETTINGS, "star_image.data without a path must not be NULL"
    )
    damaged = Image(data=b"\x89PNG\r\n\x1a\n", size=8)
    assert isinstance(refused := generate(library, pipeline, damaged), Failed)
    assert refused.kind == INPUT


def test_what_does_not_open(library: Any, bundle: Any, tmp_path: Path) -> None:
    assert (open_pipeline(library, tmp_path)[1] or Failed(0, "")).kind == BUNDLE
    unknown = open_pipeline(library, bundle("mini", max_images=3), backend=b"tensorflow")[1]
    backends = "onnxruntime, tensorrt, tensorrt-rtx"
    assert unknown == Failed(SETTINGS, f"unknown backend tensorflow; backends are {backends}")
    error = library.star_pipeline_open(None, None, byref(c_void_p()))
    assert failure(library, error) == Failed(SETTINGS, "folder must not be NULL")
