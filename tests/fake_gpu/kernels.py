"""The argmax kernel of the fake GPU: NumPy's, or the CUDA source itself run on the CPU."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from star_export.engines.tensorrt.argmax import SOURCE

Argmax = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]

MAIN = """
#include "cuda_on_cpu.h"
#include "{source}"
extern "C" void run(const unsigned* logits, long long* tokens, int rows, int vocab) {{
    run_on_cpu(rows, THREADS, [=] {{ star_argmax(logits, tokens, vocab); }});
}}
"""


def numpy_argmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """What the kernel is tested against; a hundred times faster than its CPU run."""
    best = logits.argmax(axis=-1, keepdims=True)
    return np.where(np.isfinite(np.take_along_axis(logits, best, -1)), best, -1)[:, 0]


def compile_argmax(folder: Path) -> Argmax:
    """The kernel's source as a function of logits ``[B, vocab]``, compiled in ``folder``.

    ``cuda_on_cpu.h`` makes it a C++ program: one thread per CUDA thread, a barrier for
    ``__syncthreads``, blocks one after another.
    """
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    source = folder / "main.cpp"
    source.write_text(MAIN.format(source=SOURCE))
    include = Path(__file__).parents[1] / "engines"
    options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-I{include}"]
    subprocess.run([compiler, *options, source, "-o", folder / "argmax.so"], check=True)
    run = ctypes.CDLL(str(folder / "argmax.so")).run

    def argmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        tokens = np.full(len(logits), -1, np.int64)
        run(logits.ctypes.data_as(ctypes.c_void_p), tokens.ctypes.data_as(ctypes.c_void_p), *logits.shape)
        return tokens

    return argmax
