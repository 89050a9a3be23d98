"""Threads that yield to others: what nobody waits for token by token may take longer."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

#: Added to the niceness of a thread that yields: beside a busy one it gets a quarter of a core.
NICENESS = 5

Result = TypeVar("Result")


def yield_to_others() -> None:
    """Lower the priority of the thread that calls, and of those that it starts; nothing raises it again.

    Only Linux has priorities of threads; elsewhere, and where a container forbids it, nothing changes.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


def yielding_thread(name: str) -> ThreadPoolExecutor:
    """A thread that does one piece of work after the other, with a lower priority."""
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=yield_to_others)


def in_yielding_thread(work: Callable[[], Result]) -> Result:
    """Do some work in such a thread: threads that it starts yield too."""
    with yielding_thread("star-export-yielding") as thread:
        return thread.submit(work).result()
