"""KV caches on the GPU, in one allocation, whole or row by row."""

from functools import cached_property
from typing import Protocol

import numpy as np

from star_export.arrays import to_device_dtype
from star_export.contract import DECODE, GraphSpec, capacity_symbols
from star_export.engines.session import HostArray
from star_export.engines.tensorrt import cuda
from star_export.engines.tensorrt.engine import Execution
from star_export.engines.tensorrt.facts import Shape
from star_export.engines.tensorrt.transfers import tensor_bytes
from star_export.errors import SettingsError, option
from star_export.specs import ExportSpec


class CachesOwner(Protocol):
    """What caches ask of their session; see there."""

    spec: ExportSpec
    contract: dict[str, GraphSpec]
    stream: cuda.Stream

    def refuse_closed(self) -> None:
        """Refuse to go on after the session was closed."""

    def fetch(self, address: int, dtype: str, shape: Shape) -> HostArray:
        """Copy a tensor to host memory."""

    def store(self, address: int, values: HostArray) -> None:
        """Copy a tensor from host memory."""

    def decode_execution(self, caches: "TensorRTCaches") -> Execution:
        """A context for decode steps."""


class TensorRTCaches:
    """KV caches in one allocation; decode has a context, and a CUDA graph, for each of these.

    Args:
        session: Whose engines use them.
        batch: Sequences that they are the caches of.
        capacities: Tokens of a sequence that they have room for, per layer group.
        whole: Caches in whose memory these lie; None allocates.
        start: First of their sequences, in ``whole``.
    """

    def __init__(
        self,
        session: CachesOwner,
        batch: int,
        capacities: tuple[int, ...],
        *,
        whole: "TensorRTCaches | None" = None,
        start: int = 0,
    ) -> None:
        self._session, self.batch, self.capacities = session, batch, capacities
        io = session.contract[DECODE]
        self.specs = io.caches()
        sizes = {"B": batch} | dict(zip(capacity_symbols(session.spec), capacities, strict=True))
        self.shapes = {
            name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)
            for name, spec in self.specs.items()
        }
        self._sizes = {
            name: tensor_bytes(self.specs[name].dtype, shape) for name, shape in self.shapes.items()
        }
        if whole is None:
            self._memory = cuda.Tensors(self._sizes, f"the KV caches of {batch} sequences")
            self._places = {name: self._memory.address(name) for name in self._sizes}
            self.zero()
        else:
            self._memory = whole._memory
            self._places = {
                name: whole._places[name] + start * size // batch for name, size in self._sizes.items()
            }
        # An engine writes in place: one address for what it reads and what it writes.
        self.addresses = {name: self._places[pair[1]] for pair in io.aliases.items() for name in pair}

    @cached_property
    def execution(self) -> Execution:
        """What runs decode steps on these caches."""
        return self._session.decode_execution(self)

    def numpy(self, name: str) -> HostArray:
        """Copy of the cache with past name ``name``: ``[B, Hkv, capacity, D]``."""
        return self._session.fetch(self._places[name], self.specs[name].dtype, self.shapes[name])

    def fill(self, name: str, values: HostArray) -> None:
        """Overwrite the first tokens of a cache, and what is behind them with zeros."""
        rounded = self.specs[name].dtype == "bfloat16"  # which came as float32
        whole = np.zeros(self.shapes[name], values.dtype)
        whole[:, :, : values.shape[2]] = values
        self._session.store(self._places[name], to_device_dtype(whole, "bfloat16") if rounded else whole)

    def rows(self, start: int, stop: int) -> "TensorRTCaches":
        """The caches of sequences ``start`` to ``stop - 1``, in the same memory.

        Raises:
            SettingsError: If one sequence's caches are no multiple of what TensorRT aligns to.
        """
        for name, size in self._sizes.items():
            if size // self.batch % cuda.ALIGNMENT:
                raise SettingsError(
                    f"{name} takes {size // self.batch} bytes a sequence, no multiple of {cuda.ALIGNMENT}: "
                    "TensorRT cannot use each alone; "
                    f"build with another {option('max_new_tokens')}, or serve one slot"
                )
        return TensorRTCaches(self._session, stop - start, self.capacities, whole=self, start=start)

    def zero(self) -> None:
        """Overwrite with zeros."""
        self._session.refuse_closed()
        for name, size in self._sizes.items():
            self._session.stream.zero(self._places[name], size)
