"""Why a request was not answered: one table, which every front door maps to codes of its own."""

from concurrent.futures import CancelledError
from enum import Enum, auto

from star_export.errors import BusyError, DeadlineError, InputError, SettingsError, UnreachableError


class Failure(Enum):
    """What an error means to who sent the request."""

    INVALID = auto()  #: This bundle cannot answer it.
    BUSY = auto()  #: The same request may succeed later, or elsewhere.
    LATE = auto()  #: It took longer than it may.
    CANCELLED = auto()  #: Its sender let it go.
    UNREACHABLE = auto()  #: The server that was to answer it is gone; it may come back.
    INTERNAL = auto()  #: The server failed.

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """What an error of :class:`star_export.serving.service.Service` or of a ticket means."""
        return next((failure for kind, failure in _KINDS.items() if isinstance(error, kind)), cls.INTERNAL)


_KINDS: dict[type[Exception], Failure] = {
    InputError: Failure.INVALID,
    SettingsError: Failure.INVALID,
    BusyError: Failure.BUSY,
    DeadlineError: Failure.LATE,
    CancelledError: Failure.CANCELLED,
    UnreachableError: Failure.UNREACHABLE,
}
