"""How fast this machine's CPU is, measured within a second or two."""

import os
import time
from collections.abc import Callable

import numpy as np

from star_export.gpus import Device

_SIDE, _BYTES, _ROUNDS = 2048, 1 << 28, 4


def measure_machine() -> Device:
    """Bandwidth of a copy in memory, both ways counted, and arithmetic of a float32 matrix product.

    The best of a few rounds each, with the threads that numpy takes.
    """
    matrix = np.ones((_SIDE, _SIDE), np.float32)
    product, source = np.empty_like(matrix), np.ones(_BYTES, np.uint8)
    target = np.empty_like(source)
    return Device(
        name="this machine",
        bandwidth=2 * _BYTES / _best(lambda: np.copyto(target, source)),
        flops=2 * _SIDE**3 / _best(lambda: np.matmul(matrix, matrix, out=product)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        dtypes=("float32",),
    )


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest round."""
    seconds = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
