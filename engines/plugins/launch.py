"""Launch the kernel through the CUDA driver, for its GPU tests and its benchmark.

Engines do not come here: TensorRT launches the kernel itself.
"""

import ctypes
import importlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from star_export.engines.plugins.nvrtc import KERNEL, compile_ptx, launch_constant
from star_export.errors import PlatformError


class Gpu:
    """The first CUDA device with the kernel loaded; memory is freed on exit.

    Attributes:
        name: What the driver calls the device.
        l2_bytes: Size of its second-level cache.

    Raises:
        PlatformError: If there is no driver, no device or no NVRTC, or a CUDA call fails.
    """

    def __init__(self) -> None:
        try:
            self.driver: Any = importlib.import_module("cuda.bindings.driver")
            self.call(self.driver.cuInit(0))
        except (ImportError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["no cuda.bindings"])[0]
            raise PlatformError(f"this needs an NVIDIA GPU and its driver ({reason})") from None
        device = self.call(self.driver.cuDeviceGet(0))
        self._device = device
        self.call(self.driver.cuCtxSetCurrent(self.call(self.driver.cuDevicePrimaryCtxRetain(device))))
        self.name = self.call(self.driver.cuDeviceGetName(80, device)).rstrip(b"\0").decode()
        attribute = self.driver.CUdevice_attribute
        major = self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        self.l2_bytes = self._attribute(attribute.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
        self._module = self.call(self.driver.cuModuleLoadData(compile_ptx(f"compute_{major}{minor}") + b"\0"))
        self._kernel = self.call(self.driver.cuModuleGetFunction(self._module, KERNEL.encode()))
        self._memory: list[Any] = []

    def call(self, result: Sequence[Any]) -> Any:
        """The value of a driver call that returned ``(status, value)`` or ``(status,)``."""
        if result[0]:
            raise PlatformError(
                f"the CUDA driver says {result[0].name}; nvidia-smi shows whether the GPU works"
            )
        return result[1] if len(result) > 1 else None

    def allocate(self, size: int) -> int:
        """Address of ``size`` new bytes of device memory."""
        self._memory.append(self.call(self.driver.cuMemAlloc(size)))
        return int(self._memory[-1])

    def free(self) -> None:
        """Free everything that was allocated, when the kernels that use it are done."""
        self.call(self.driver.cuCtxSynchronize())
        while self._memory:
            self.call(self.driver.cuMemFree(self._memory.pop()))

    def topk_gather(
        self,
        x: int,
        scores: int,
        kept: int,
        indices: int,
        *,
        sizes: tuple[int, int, int, int],
        stream: Any = 0,
    ) -> None:
        """Start the kernel.

        Args:
            x: Device address of ``[B, rows, row_bytes]``.
            scores: Of float32 ``[B, rows]``.
            kept: Of ``[B, k, row_bytes]``.
            indices: Of int64 ``[B, k]``.
            sizes: ``(B, rows, row_bytes, k)``.
            stream: A ``CUstream``; 0 is the default stream.
        """
        batch, rows, row_bytes, k = sizes
        values = (x, scores, 0, rows, k, row_bytes, kept, indices)
        types = (*[ctypes.c_void_p] * 3, *[ctypes.c_int] * 3, *[ctypes.c_void_p] * 2)
        blocks = batch * -(-k // launch_constant("STAR_ROWS_PER_BLOCK"))
        threads = launch_constant("STAR_BLOCK_THREADS")
        launch = self.driver.cuLaunchKernel
        self.call(launch(self._kernel, blocks, 1, 1, threads, 1, 1, 0, stream, (values, types), 0))

    def _attribute(self, attribute: Any) -> int:
        return int(self.call(self.driver.cuDeviceGetAttribute(attribute, self._device)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()
        self.driver.cuModuleUnload(self._module)
        self.driver.cuDevicePrimaryCtxRelease(self._device)
