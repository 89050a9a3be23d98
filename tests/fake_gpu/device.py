"""The fake GPU: streams of work on host memory, done at once or as late as CUDA allows.

It shows what the package asks of a GPU: addresses, sizes, order, waiting. It is no model of NVIDIA's
software, of which only the calls are here that the package makes: one device, no default stream.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tests.fake_gpu.kernels import Argmax, numpy_argmax
from tests.fake_gpu.memory import CudaError, Memory

Work = Callable[[], None]

INVALID_HANDLE, CAPTURE_UNSUPPORTED = 400, 900


@dataclass(eq=False)
class FakeStream:
    """Work in order; ``recorded`` is the CUDA graph that is being captured, if one is."""

    pending: deque[Work] = field(default_factory=deque)
    queued: int = 0
    done: int = 0
    recorded: list[Work] | None = None


@dataclass(eq=False)
class FakeEvent:
    """A number of pieces of work of one stream; of none before it is recorded."""

    stream: FakeStream | None = None
    after: int = 0


class FakeGpu:
    """One device; nothing of it is NVIDIA's.

    Args:
        lazy: Whether work waits until somebody waits for it: for its stream, for an event behind
            it, or for memory to be freed. Else it is done when it is queued.
        total: Bytes of device memory.

    Attributes:
        capability: Compute capability.
        memory: Its memory.
        argmax: What the argmax kernel computes with.
        lost: CUDA's error code after which every call fails.
        lock: Held during every call.
    """

    capability = (8, 9)

    def __init__(self, *, lazy: bool, total: int = 1 << 32) -> None:
        self.lazy, self.memory = lazy, Memory(total)
        self.argmax: Argmax = numpy_argmax
        self.lost: int | None = None
        self.lock = threading.RLock()
        self.objects: dict[int, Any] = {}
        self._handles = count(1)
        self._running = False
        self._freed: list[int] = []

    def register(self, made: Any) -> int:
        """A handle of a stream, an event, a graph, ..."""
        handle = next(self._handles)
        self.objects[handle] = made
        return handle

    def find(self, handle: Any, kind: type) -> Any:
        """What a handle is of."""
        found = self.objects.get(int(handle))
        if not isinstance(found, kind):
            raise CudaError(INVALID_HANDLE)
        return found

    def queue(self, handle: Any, work: Work) -> None:
        """Put work on a stream, or into the graph that it records."""
        stream: FakeStream = self.find(handle, FakeStream)
        if stream.recorded is not None:
            stream.recorded.append(work)
            return
        stream.pending.append(work)
        stream.queued += 1
        if not self.lazy:
            self.finish(stream)

    def finish(self, stream: FakeStream, *, after: int | None = None) -> None:
        """Do the work of a stream: all of it, or until ``after`` pieces are done."""
        if stream.recorded is not None:
            raise CudaError(CAPTURE_UNSUPPORTED)
        self._running = True
        try:
            while self.lost is None and stream.pending and (after is None or stream.done < after):
                stream.done += 1
                stream.pending.popleft()()
        except CudaError as error:
            self.lost = error.code
        finally:
            self._running = False

    def free(self, address: int) -> None:
        """Free memory when all work is done, as CUDA does; a finalizer may ask for it amid some."""
        self._freed.append(address)
        if self._running:
            return
        for stream in [found for found in self.objects.values() if isinstance(found, FakeStream)]:
            if stream.recorded is None:
                self.finish(stream)
        while self._freed:
            self.memory.free(self._freed.pop())
