"""What every backend offers: the three graphs of one bundle, loaded and ready.

The pipeline, the parity check and the benchmark only know this interface.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from star_export.contract import GraphSpec
from star_export.errors import InputError
from star_export.specs import ExportSpec

HostArray = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


class DeviceArray(Protocol):
    """A tensor where the backend keeps it, valid until the graph that gave it runs again."""

    def numpy(self) -> HostArray:
        """Copy to host memory; bfloat16, which NumPy has not, becomes float32."""

    def argmax(self) -> Int64:
        """Index of the largest of each row of float32 ``[B, N]``: int64 ``[B]``, on the host.

        Ties go to the lower index. -1 for a row whose largest, as NumPy orders them, is not finite:
        it holds a NaN or plus infinity, or minus infinity alone.
        """


Tensor = HostArray | DeviceArray


def on_host(tensor: Tensor) -> HostArray:
    """A tensor in host memory, copied if it is elsewhere."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


class Caches(Protocol):
    """The KV caches of one or more sequences, updated in place."""

    def numpy(self, name: str) -> HostArray:
        """Copy of the cache with past name ``name``: ``[B, Hkv, capacity, D]``."""

    def fill(self, name: str, values: HostArray) -> None:
        """Overwrite the first tokens of the cache with past name ``name``.

        Args:
            name: Its past name.
            values: ``[B, Hkv, tokens, D]``, of the element type that :meth:`numpy` gives.
        """

    def rows(self, start: int, stop: int) -> "Caches":
        """The caches of sequences ``start`` to ``stop - 1``, in the same memory."""

    def zero(self) -> None:
        """Overwrite with zeros: NaNs of one sequence would reach the next, even where it sees nothing."""


class Closing(Protocol):
    """What holds memory until :meth:`close`, which the end of a ``with`` block calls."""

    def close(self) -> None:
        """Let go of it; a second time does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Session(Closing, Protocol):
    """The three graphs on one device, until it is closed: then its caches are gone too.

    Attributes:
        spec: What was exported.
        contract: Inputs and outputs of each graph.
        max_batch: Sequences that can be decoded at once; None when only memory limits them.
        resizable: Whether its caches may change their size.
    """

    spec: ExportSpec
    contract: dict[str, GraphSpec]
    max_batch: int | None
    resizable: bool

    def capacities(self, needed: Sequence[int]) -> tuple[int, ...]:
        """Tokens of a sequence that caches have room for, per layer group, of which ``needed`` are needed."""

    def allocate_caches(self, batch: int = 1, capacities: Sequence[int] | None = None) -> Caches:
        """Zeroed KV caches for ``batch`` sequences.

        Args:
            batch: How many.
            capacities: What :meth:`capacities` gave; the bundle's own by default.
        """

    def resize_caches(
        self, caches: Caches, batch: int, capacities: Sequence[int], *, rows: Sequence[int] = ()
    ) -> None:
        """Give caches another size, tensor by tensor, so that at most one tensor is there twice.

        Only where a session's caches are :attr:`resizable`.
        What :meth:`Caches.rows` gave of them before sees the new memory.

        Args:
            caches: From :meth:`allocate_caches`. After an error they hold nothing, until they are resized
                without ``rows``.
            batch: Sequences that they are then for.
            capacities: What :meth:`capacities` gave.
            rows: Sequences that stay, as far as there is room; they become the first, in this order.
        """

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph.

        Args:
            graph: ``vision``, ``prefill`` or ``decode``.
            feeds: Every input but the caches, by name.
            caches: For prefill and decode: read, and updated in place.

        Returns:
            Every output but the caches, by name; a GPU may still be computing them.
        """

    def synchronize(self) -> None:
        """Wait until everything that was run is done."""

    def beside(self) -> "Session | None":
        """The same graphs for another thread, whose runs are not ordered with those here and yield to them.

        None where graphs must run one after the other. It is closed with this one.
        """

    def borrow(self, caches: Caches) -> Caches:
        """Caches of this session, or of the one that it is :meth:`beside`, to be used here; the same memory.

        Who uses them here waits for what the other did on these rows, and the other way round.
        """


class Wrapper(Session):
    """A session around another one, which does everything that is not changed here."""

    def __init__(self, session: Session) -> None:
        self.session, self.spec, self.contract = session, session.spec, session.contract
        self.max_batch, self.resizable = session.max_batch, session.resizable

    def capacities(self, needed: Sequence[int]) -> tuple[int, ...]:
        """Those of the session inside."""
        return self.session.capacities(needed)

    def allocate_caches(self, batch: int = 1, capacities: Sequence[int] | None = None) -> Caches:
        """Caches of the session inside."""
        return self.session.allocate_caches(batch, capacities)

    def resize_caches(
        self, caches: Caches, batch: int, capacities: Sequence[int], *, rows: Sequence[int] = ()
    ) -> None:
        """Resize caches of the session inside."""
        self.session.resize_caches(caches, batch, capacities, rows=rows)

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph in the session inside."""
        return self.session.run(graph, feeds, caches)

    def synchronize(self) -> None:
        """Wait for the session inside."""
        self.session.synchronize()

    def beside(self) -> Session | None:
        """This one, if the session inside is the same in several threads."""
        return self if self.session.beside() is self.session else None

    def borrow(self, caches: Caches) -> Caches:
        """As the session inside."""
        return self.session.borrow(caches)

    def close(self) -> None:
        """Close the session inside."""
        self.session.close()


def resizable_capacities(session: Session, needed: Sequence[int]) -> tuple[int, ...]:
    """Capacities of caches that others may need more of later: the bundle's where they stay as they are."""
    return session.capacities(needed) if session.resizable else session.spec.capacities


def refuse_closed(*, closed: bool) -> None:
    """Refuse to use a session that is closed.

    Raises:
        InputError: If it is.
    """
    if closed:
        raise InputError("this session is closed, and what it held is gone; open the bundle again")
