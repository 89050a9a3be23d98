"""The argmax kernel: compiled for real GPUs, and run on the CPU against NumPy."""

import numpy as np
import pytest

from star_export.engines.tensorrt.argmax import THREADS, compile_kernel
from star_export.errors import PlatformError
from tests.fake_gpu.kernels import Argmax, compile_argmax


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Argmax:
    """The kernel's source as a function of logits ``[B, vocab]``."""
    return compile_argmax(tmp_path_factory.mktemp("argmax"))


@pytest.mark.parametrize(
    "row",
    [
        [1.0, 3.0, 2.0],
        [5.0],
        [2.0, 2.0, 2.0],
        [-1.0, -3.0, -1.0],
        [0.0, -0.0, 0.0],
        [-0.0, 0.0],
        [-np.inf, -np.inf],
        [-np.inf, np.inf, np.inf, 3e38],
        [1e-45, 0.0, -1e-45],
        [1.0, np.nan, np.inf, np.nan],
        [np.inf, -np.nan, 1.0],
        [np.nan],
    ],
    ids=str,
)
def test_order_is_numpys(kernel: Argmax, row: list[float]) -> None:
    logits = np.array([row], np.float32)
    best = int(logits[0].argmax())
    assert kernel(logits).tolist() == [best if np.isfinite(logits[0, best]) else -1]


def test_every_nan_counts_alike(kernel: Argmax) -> None:
    """As with NumPy, whatever its sign and payload."""
    for nan in (0xFFC00001, 0x7FFFFFFF, 0x7F800001, 0xFF800001):
        bits = np.array([[0x3F800000, 0x7F7FFFFF, nan, 0]], np.uint32)
        assert kernel(bits.view(np.float32)).tolist() == [-1]


def test_the_largest_and_the_smallest_number_are_finite(kernel: Argmax) -> None:
    limit = np.finfo(np.float32).max
    assert kernel(np.array([[0, limit], [-limit, -np.inf]], np.float32)).tolist() == [1, 0]


@pytest.mark.parametrize("vocab", [1, 2, THREADS - 1, THREADS, THREADS + 1, 4 * THREADS + 7, 32064])
def test_rows_of_every_length(kernel: Argmax, vocab: int) -> None:
    random = np.random.default_rng(vocab)
    # Few different values: most rows have ties, which fall to different threads.
    for logits in (random.normal(size=(2, vocab)), random.integers(0, 4, (2, vocab)).astype(float)):
        rows = logits.astype(np.float32)
        assert kernel(rows).tolist() == rows.argmax(axis=-1).tolist()


def test_the_best_is_found_wherever_it_is(kernel: Argmax) -> None:
    for place in (0, 1, THREADS - 1, THREADS, THREADS + 1, 2 * THREADS, 1502):
        logits = np.full((1, 1503), -7.0, np.float32)
        logits[0, place] = -6.5
        assert kernel(logits).tolist() == [place]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1)])
def test_compiles_for_every_supported_gpu(capability: tuple[int, int]) -> None:
    code = nvrtc_compile(capability)
    assert code.startswith(b"\x7fELF")
    assert b"star_argmax" in code


def test_an_unknown_gpu_is_named() -> None:
    with pytest.raises(PlatformError, match=r"^NVRTC .* cannot compile argmax.cu for sm_35: .*architecture"):
        nvrtc_compile((3, 5))


def nvrtc_compile(capability: tuple[int, int]) -> bytes:
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        return compile_kernel(capability)
    except PlatformError as error:
        if "needs NVRTC" in str(error):
            pytest.skip(str(error))
        raise
