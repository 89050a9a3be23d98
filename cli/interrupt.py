"""Ctrl-C that cannot get lost.

Python drops a KeyboardInterrupt that is raised while a destructor or a weak reference's callback
runs, and torch's exporter has many of these: a long command would go on as if nothing had happened.
"""

import signal
import sys
from typing import Any

_seen = False


def remember_interrupts() -> None:
    """Raise KeyboardInterrupt on Ctrl-C as before, and know of it later; not where Ctrl-C is ignored."""
    global _seen
    _seen = False  # of another command in this process
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _say_but_interrupts


def stop_if_interrupted() -> None:
    """To be called between the steps of long work.

    Raises:
        KeyboardInterrupt: If Ctrl-C was pressed, and something swallowed it.
    """
    if _seen:
        raise KeyboardInterrupt


def was_swallowed(error: BaseException) -> bool:
    """Whether an error is what a compiled module makes of Ctrl-C while it is imported."""
    return _seen and isinstance(error, ImportError)


def _interrupt(*_: Any) -> None:
    global _seen  # a signal handler has no other place
    _seen = True
    raise KeyboardInterrupt


def _say_but_interrupts(dropped: Any) -> None:
    """Of what Python drops, print all but Ctrl-C, which is not lost."""
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
