"""How many requests may be present at once, from their arrival to their end."""

import threading
import time
from collections.abc import Callable

from star_export.errors import BusyError

CLOSING = "the server is shutting down; try again at another one"


class Place:
    """Room for one request, from its arrival until it is done.

    A ``with`` block around what is done before a ticket holds it gives it back, unless one does by then.

    Args:
        leave: Told that it is given back.

    Attributes:
        arrived: By ``time.monotonic``, in seconds.
        held: Whether a ticket holds it, which gives it back at its own end.
    """

    def __init__(self, leave: Callable[["Place"], None]) -> None:
        self.arrived, self.held = time.monotonic(), False
        self._leave = leave

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.held:
            self.leave()

    def leave(self) -> None:
        """Give it back; once more changes nothing."""
        self._leave(self)


class Admission:
    """Places for requests, those that run and those that wait together; counted exactly, from any thread.

    Args:
        limit: Requests that may be present at once.

    Attributes:
        refused: Requests that found no place.
        closed: Whether it lets nobody in any more.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.refused = limit, 0
        self._places: set[Place] = set()
        self._changed = threading.Condition()
        self.closed = False

    @property
    def present(self) -> int:
        """Requests that have a place."""
        return len(self._places)

    def enter(self) -> Place:
        """A place for a request that arrives.

        Raises:
            BusyError: If there is none, or there will be none any more.
        """
        with self._changed:
            if self.closed:
                raise BusyError(CLOSING)
            if self.present >= self.limit:
                self.refused += 1
                raise BusyError(f"{self.limit} requests are here already; try again later")
            place = Place(self._leave)
            self._places.add(place)
        return place

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self.closed = True

    def wait_until_empty(self, seconds: float) -> None:
        """Wait for everybody to leave, at most some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._places, seconds)

    def _leave(self, place: Place) -> None:
        with self._changed:
            self._places.discard(place)
            self._changed.notify_all()
