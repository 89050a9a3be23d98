"""Benchmark of the TopKGather kernel on a GPU: ``python -m star_export.measure.kernel_bench``.

Every time is a median over replays of a CUDA graph that holds one call per set of buffers. The
sets together are larger than the second-level cache, so a call finds nothing of its input there,
and the graph keeps Python's launch time out of the figures, for the kernel and for torch alike.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from star_export.dtypes import DTYPES
from star_export.engines.plugins.launch import Gpu
from star_export.errors import EXIT_COULD_NOT_RUN, EXIT_OK, StarExportError

#: (rows, k): both stages of LLaVA-1.5, LLaVA-NeXT, and more rows than either has.
ROWS = ((576, 518), (576, 64), (2928, 640), (8192, 640), (8192, 4096))
CHANNELS = (1024, 4096)
ELEMENT_BYTES = DTYPES["float16"].itemsize
COPY_BYTES = 1 << 28
WARMUP, REPEATS = 5, 21


@dataclass(frozen=True)
class Work:
    """One size, of one sequence in float16."""

    rows: int
    k: int
    channels: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of ``x``."""
        return self.channels * ELEMENT_BYTES

    @property
    def bytes_moved(self) -> int:
        """What has to move at least: scores once, kept rows in and out, indices out."""
        return 4 * self.rows + self.k * (2 * self.row_bytes + 8)

    def sets(self, l2_bytes: int) -> int:
        """How many sets of buffers are twice as large as the cache."""
        return max(2, math.ceil(2 * l2_bytes / (self.rows * (self.row_bytes + 4) + self.k * self.row_bytes)))


@dataclass(frozen=True)
class Timing:
    """One line of the table.

    Attributes:
        work: The size.
        kernel_us: Microseconds of the kernel.
        torch_us: Microseconds of ``torch.topk``, ``sort`` and ``gather``; None without CUDA in torch.
        copy_gb_s: Read and written gigabytes per second of a large copy, from the same run.
    """

    work: Work
    kernel_us: float
    torch_us: float | None
    copy_gb_s: float

    @property
    def ratio(self) -> float | None:
        """How many times as fast as torch the kernel is."""
        return None if self.torch_us is None else self.torch_us / self.kernel_us

    @property
    def share(self) -> float:
        """Achieved bandwidth divided by that of the copy."""
        return self.work.bytes_moved / self.kernel_us / 1e3 / self.copy_gb_s

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        derived = {"bytes_moved": self.work.bytes_moved, "ratio": self.ratio, "share": self.share}
        return asdict(self) | derived


def bench(gpu: Gpu) -> list[Timing]:
    """Measure every size of :data:`ROWS` and :data:`CHANNELS`.

    Raises:
        PlatformError: If a CUDA call fails.
    """
    copy = _copy_gb_s(gpu)
    works = [Work(rows, k, channels) for channels in CHANNELS for rows, k in ROWS]
    return [Timing(work, _kernel_us(gpu, work), _torch_us(gpu, work), copy) for work in works]


def _median_us(gpu: Gpu, start: Callable[[], object]) -> float:
    """Median microseconds on the default stream from before to after ``start``."""
    call, driver = gpu.call, gpu.driver
    before, after = call(driver.cuEventCreate(0)), call(driver.cuEventCreate(0))
    times: list[float] = []
    for _ in range(WARMUP + REPEATS):
        call(driver.cuEventRecord(before, 0))
        start()
        call(driver.cuEventRecord(after, 0))
        call(driver.cuEventSynchronize(after))
        times.append(1e3 * call(driver.cuEventElapsedTime(before, after)))
    return statistics.median(times[WARMUP:])


def _copy_gb_s(gpu: Gpu) -> float:
    source, target = gpu.allocate(COPY_BYTES), gpu.allocate(COPY_BYTES)
    micros = _median_us(gpu, lambda: gpu.call(gpu.driver.cuMemcpyDtoDAsync(target, source, COPY_BYTES, 0)))
    return 2 * COPY_BYTES / micros / 1e3


def _scores(work: Work) -> torch.Tensor:
    return torch.randn(1, work.rows, generator=torch.Generator().manual_seed(0)).softmax(-1)


def _kernel_us(gpu: Gpu, work: Work) -> float:
    call, driver, scores = gpu.call, gpu.driver, _scores(work)
    buffers = []
    for _ in range(work.sets(gpu.l2_bytes)):
        sizes = (work.rows * work.row_bytes, scores.nbytes, work.k * work.row_bytes, work.k * 8)
        addresses = [gpu.allocate(size) for size in sizes]
        call(driver.cuMemcpyHtoD(addresses[1], scores.data_ptr(), scores.nbytes))
        buffers.append(addresses)
    stream = call(driver.cuStreamCreate(0))
    call(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
    for addresses in buffers:
        gpu.topk_gather(*addresses, sizes=(1, work.rows, work.row_bytes, work.k), stream=stream)
    graph = call(driver.cuGraphInstantiate(call(driver.cuStreamEndCapture(stream)), 0))
    micros = _median_us(gpu, lambda: call(driver.cuGraphLaunch(graph, 0))) / len(buffers)
    gpu.free()
    return micros


def _torch_us(gpu: Gpu, work: Work) -> float | None:
    if not torch.cuda.is_available():
        return None
    sets = []
    for _ in range(work.sets(gpu.l2_bytes)):
        x = torch.empty(1, work.rows, work.channels, dtype=torch.float16, device="cuda")
        sets.append((x, _scores(work).cuda()))
    kept = torch.empty(len(sets), 1, work.k, work.channels, dtype=torch.float16, device="cuda")

    def run() -> None:
        for (x, scores), out in zip(sets, kept, strict=True):
            indices = scores.topk(work.k).indices.sort().values
            torch.gather(x, 1, indices[..., None].expand(-1, -1, work.channels), out=out)

    run()  # loads torch's kernels, which a capture must not do
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return _median_us(gpu, graph.replay) / len(sets)


def table(timings: list[Timing]) -> str:
    """The timings as text."""
    lines = [f"large copy: {timings[0].copy_gb_s:,.0f} GB/s read and written"]
    if timings[0].torch_us is None:
        lines.append("torch has no CUDA here: the kernel alone")
    lines.append("  rows     k     C  MB moved  kernel us  torch us  ratio  share")
    for t in timings:
        w = t.work
        against = f"{'-':>10}{'-':>7}" if t.ratio is None else f"{t.torch_us:>10.2f}{t.ratio:>6.1f}x"
        size = f"{w.rows:>6}{w.k:>6}{w.channels:>6}{w.bytes_moved / 1e6:>10.2f}"
        lines.append(f"{size}{t.kernel_us:>11.2f}{against}{t.share:>7.0%}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure the TopKGather kernel on this machine's GPU, against torch."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    try:
        with Gpu() as gpu:
            timings = bench(gpu)
            name = gpu.name
    except StarExportError as error:
        print(error, file=sys.stderr)
        return EXIT_COULD_NOT_RUN
    if options.json:
        print(json.dumps({"gpu": name, "timings": [t.to_dict() for t in timings]}))
    else:
        print(f"{name}\n{table(timings)}")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
