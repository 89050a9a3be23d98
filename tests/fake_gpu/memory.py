"""Device and pinned memory of the fake GPU."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

#: What fresh memory holds: NaN as float16, bfloat16 and float32, -1 as int64.
POISON = 0xFF
#: Device allocations start at multiples of this, as CUDA promises; what lies between them is nobody's.
ALIGNMENT = 256
_PAGE = 4096  # where pinned allocations start
_FIRST_ADDRESS = 1 << 52  # no process has memory there: code that follows a device address on the host dies

INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS, MISALIGNED_ADDRESS = 1, 2, 700, 716


class CudaError(Exception):
    """A call that is refused or, in work that is running, the loss of the GPU; ``code`` is CUDA's."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, eq=False)
class Block:
    """One allocation."""

    address: int
    data: Bytes
    on_host: bool


class Memory:
    """All allocations.

    Args:
        total: Bytes of device memory.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.blocks: dict[int, Block] = {}
        self._next = _FIRST_ADDRESS

    @property
    def free_bytes(self) -> int:
        """Device memory that is left."""
        return self.total - sum(block.data.size for block in self.blocks.values() if not block.on_host)

    def allocate(self, size: int, *, on_host: bool = False) -> int:
        """Address of ``size`` poisoned bytes; device addresses are never used again."""
        if not on_host and size > self.free_bytes:
            raise CudaError(OUT_OF_MEMORY)
        whole = np.full(size + _PAGE, POISON, np.uint8)
        data = whole[-whole.ctypes.data % _PAGE :][:size]
        address = data.ctypes.data if on_host else self._next
        if not on_host:
            self._next += (size // ALIGNMENT + 2) * ALIGNMENT
        self.blocks[address] = Block(address, data, on_host)
        return address

    def free(self, address: int) -> None:
        """Give back what :meth:`allocate` gave."""
        if self.blocks.pop(address, None) is None:
            raise CudaError(INVALID_VALUE)

    def view(self, address: int, size: int, *, alignment: int = 1, on_host: bool | None = None) -> Bytes:
        """The bytes at an address, which must lie in one allocation; of one kind, if ``on_host`` says so."""
        if address % alignment:
            raise CudaError(MISALIGNED_ADDRESS)
        for block in self.blocks.values():
            start = address - block.address
            if start >= 0 and start + size <= block.data.size and on_host in (None, block.on_host):
                return block.data[start : start + size]
        raise CudaError(ILLEGAL_ADDRESS)
