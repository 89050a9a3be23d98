"""The kernel on a GPU, launched through the driver as TensorRT would. Run by ``make test-gpu``."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from star_export.engines.plugins.launch import Gpu

pytestmark = pytest.mark.gpu

GUARD, POISON = 256, 0xA5


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    with Gpu() as device:
        yield device


class GpuKernel:
    """Calls the kernel on tensors in host memory; ``shift`` moves ``x`` and ``kept`` off their alignment."""

    def __init__(self, gpu: Gpu, shift: int = 0) -> None:
        self._gpu, self._shift = gpu, shift

    def __call__(self, x: torch.Tensor, scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch, rows, channels = x.shape
        row_bytes = channels * x.dtype.itemsize
        kept_bytes, index_bytes = batch * k * row_bytes, batch * k * 8
        source = self._gpu.allocate(x.nbytes + self._shift) + self._shift
        ranked = self._gpu.allocate(scores.nbytes)
        kept, indices = self._poisoned(kept_bytes, self._shift), self._poisoned(index_bytes, 0)
        driver, call = self._gpu.driver, self._gpu.call
        for address, tensor in ((source, x.contiguous()), (ranked, scores.contiguous())):
            call(driver.cuMemcpyHtoD(address, tensor.data_ptr(), tensor.nbytes))
        self._gpu.topk_gather(source, ranked, kept, indices, sizes=(batch, rows, row_bytes, k))
        rows_kept = self._read(kept, kept_bytes).view(x.dtype).reshape(batch, k, channels)
        return rows_kept, self._read(indices, index_bytes).view(torch.int64).reshape(batch, k)

    def _poisoned(self, size: int, shift: int) -> int:
        start = self._gpu.allocate(size + 2 * GUARD + shift)
        self._gpu.call(self._gpu.driver.cuMemsetD8(start, POISON, size + 2 * GUARD + shift))
        return start + GUARD + shift

    def _read(self, address: int, size: int) -> torch.Tensor:
        """The bytes at ``address``, whose guards must be as they were."""
        data = np.empty(size + 2 * GUARD, np.uint8)
        self._gpu.call(self._gpu.driver.cuMemcpyDtoH(data.ctypes.data, address - GUARD, data.nbytes))
        assert (data[:GUARD] == POISON).all(), "written before the output"
        assert (data[GUARD + size :] == POISON).all(), "written behind the output"
        return torch.from_numpy(data[GUARD : GUARD + size].copy())


def test_against_the_definition(case, gpu, check) -> None:
    check(GpuKernel(gpu), case)


@pytest.mark.parametrize(
    "size", [(1, 576, 1024, 518), (2, 700, 4096, 190), (1, 2928, 4096, 640), (1, 8192, 4096, 4096)], ids=str
)
@pytest.mark.parametrize("kind", ["softmax", "text always kept", "all equal", "bit patterns"])
def test_real_sizes(kind, size, gpu, check, case_of) -> None:
    for _ in range(3):  # a race need not show the first time
        check(GpuKernel(gpu), case_of(kind, size, torch.float16))


@pytest.mark.parametrize("shift", [2, 4, 8])
def test_any_alignment(shift, gpu, check, case_of) -> None:
    check(GpuKernel(gpu, shift), case_of("random", (2, 600, 1024, 80), torch.float16))


def test_far_more_blocks_than_the_gpu_holds(gpu, check, case_of) -> None:
    check(GpuKernel(gpu), case_of("random", (70_000, 3, 2, 2), torch.float16))
