"""The CUDA kernel itself, compiled with g++ and run with one CPU thread per CUDA thread."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper, parser

from star_export.contract import STAR_DOMAIN
from star_export.engines.plugins.nvrtc import FOLDER, SOURCE
from star_export.graphs.ops import topk_gather_function

HERE = Path(__file__).parent
GUARD = 64  # bytes before and after each output that must stay as they are
POISON = 0xA5

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def compile_kernel(folder: Path, *options: str, source: Path = SOURCE) -> Path:
    """The kernel and its launcher as a shared library."""
    library = folder / "topk_gather.so"
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror", *options]
    command += ["-Wno-unknown-pragmas", f"-I{FOLDER}", "-include", str(HERE.parent / "cuda_on_cpu.h")]
    command += ["-x", "c++", str(source), str(HERE / "topk_gather_on_cpu.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


class CpuKernel:
    """Calls a compiled kernel on torch tensors; ``shift`` moves ``x`` and ``kept`` off their alignment."""

    def __init__(self, library: Path, shift: int = 0) -> None:
        self._library = ctypes.CDLL(str(library))
        self._shift = shift

    def __call__(self, x: torch.Tensor, scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch, rows, channels = x.shape
        row_bytes = channels * x.dtype.itemsize
        source, kept = Guarded(x.nbytes, self._shift), Guarded(batch * k * row_bytes, self._shift)
        indices = Guarded(batch * k * 8, 0)
        source.view[:] = x.contiguous().view(torch.uint8).numpy().reshape(-1)
        scores = scores.contiguous()
        blocks = batch * -(-k // self._library.rows_per_block())
        self._library.launch(
            ctypes.c_uint(blocks),
            ctypes.c_void_p(source.address),
            ctypes.c_void_p(scores.data_ptr()),
            None,  # the kernel must not read `slots`
            ctypes.c_int(rows),
            ctypes.c_int(k),
            ctypes.c_int(row_bytes),
            ctypes.c_void_p(kept.address),
            ctypes.c_void_p(indices.address),
        )
        rows_kept = torch.from_numpy(kept.checked()).view(x.dtype).reshape(batch, k, channels)
        return rows_kept, torch.from_numpy(indices.checked()).view(torch.int64).reshape(batch, k)


class Guarded:
    """Poisoned bytes between poisoned guards, ``shift`` bytes off a 16-byte boundary."""

    def __init__(self, size: int, shift: int) -> None:
        self._all = np.full(size + 2 * GUARD + 32, POISON, np.uint8)
        self._start = GUARD + shift + -self._all.ctypes.data % 16
        self.view = self._all[self._start : self._start + size]
        self.address = self.view.ctypes.data

    def checked(self) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        end = self._start + len(self.view)
        assert (self._all[: self._start] == POISON).all(), "written before the output"
        assert (self._all[end:] == POISON).all(), "written behind the output"
        return self.view.copy()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """``kernel(threads, rows)``: the kernel compiled for blocks of that many threads and kept rows."""

    @cache
    def get(threads: int, rows: int) -> Path:
        folder = tmp_path_factory.mktemp(f"kernel-{threads}-{rows}")
        return compile_kernel(folder, f"-DSTAR_BLOCK_THREADS={threads}", f"-DSTAR_ROWS_PER_BLOCK={rows}")

    return get


def rows_per_block(k: int) -> int:
    """Few blocks where many rows stay: 16 threads on a few cores take milliseconds per block."""
    return 2 if k < 32 else 33 if k < 1000 else 1500


@needs_gxx
def test_against_the_definition(case, kernel, check) -> None:
    check(CpuKernel(kernel(16, rows_per_block(case.size[3]))), case)


@needs_gxx
@pytest.mark.parametrize("threads", [1, 3, 64])
def test_any_number_of_threads(threads, kernel, check, case_of) -> None:
    check(CpuKernel(kernel(threads, 5)), case_of("NaN", (2, 130, 12, 57), torch.float16))


@needs_gxx
@pytest.mark.parametrize("shift", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_any_alignment(shift, dtype, kernel, check, case_of) -> None:
    """Rows of 32 or 64 bytes could be copied in vectors, were it not for where they lie."""
    if shift >= dtype.itemsize:
        check(CpuKernel(kernel(16, 2), shift), case_of("random", (2, 20, 16, 6), dtype))


@needs_gxx
def test_more_kept_than_rows_writes_only_rows(kernel) -> None:
    x, scores = torch.arange(6.0).view(1, 3, 2), torch.tensor([[0.0, 2.0, 1.0]])
    kept, indices = CpuKernel(kernel(16, 2))(x, scores, 5)
    assert indices[0, :3].tolist() == [0, 1, 2]
    assert kept[0, :3].equal(x[0])
    assert (indices[0, 3:].numpy().view(np.uint8) == POISON).all()


@cache
def onnx_body(dtype: str) -> ort.InferenceSession:
    """A model of one TopKGather node with its function body, as the graphs have it."""
    model = parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24, "{STAR_DOMAIN}" : 1]>
        topk ({dtype}[B, N, C] x, float[B, N] scores, int64[k] slots)
            => ({dtype}[B, k, C] kept, int64[B, k] indices)
        {{ kept, indices = {STAR_DOMAIN}.TopKGather <plugin_namespace = "star"> (x, scores, slots) }}"""
    )
    model.functions.append(ir.serde.serialize_function(topk_gather_function()))
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import)[:1])
    return ort.InferenceSession(model.SerializeToString())


@needs_gxx
def test_against_the_onnx_body(case, kernel) -> None:
    if case.dtype == torch.bfloat16:
        pytest.skip("ONNX Runtime has no bfloat16 on the CPU")
    x, scores = case.tensors()
    k = case.size[3]
    kept, indices = CpuKernel(kernel(16, rows_per_block(k)))(x, scores, k)
    session = onnx_body("float" if case.dtype == torch.float32 else "float16")
    slots = np.zeros(k, np.int64)
    feeds = {"x": x.numpy(), "scores": scores.numpy(), "slots": slots}
    expected_kept, expected_indices = session.run(None, feeds)
    assert indices.tolist() == expected_indices.tolist()
    assert kept.numpy().tobytes() == expected_kept.tobytes()
