"""How much memory this process takes, and how much more it may."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

_STATUS = Path("/proc/self/status")
_M_MMAP_THRESHOLD = -3  # malloc.h


def resident_bytes(moment: Literal["now", "peak"]) -> int | None:
    """Resident bytes of this process; None where the system has no ``/proc`` to say.

    Not from ``getrusage``: its peak starts at the parent's, which a fork had for a moment.
    """
    if not _STATUS.exists():
        return None
    field = {"now": "VmRSS:", "peak": "VmHWM:"}[moment]
    return 1024 * int(_STATUS.read_text().partition(field)[2].split()[0])


def give_back() -> None:
    """Let the system have what this process freed and its C library keeps, where that is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _STATUS.exists() else None
    if trim is not None:
        trim(0)


def map_large_blocks() -> None:
    """Have glibc give every freed block of 4 MiB or more back at once, in whichever thread it was.

    By default it learns to keep them, up to 32 MiB each, and every thread that once held a large request or
    picture goes on holding its memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if _STATUS.exists() else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)


#: Files of a control group, version 2 and version 1: its limit, its use, and the field of its page cache.
_GROUP_FILES = (
    ("memory.max", "memory.current", "file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine and of its control groups, the fewest.

    Page cache counts as free. None where the system has no ``/proc`` to say.

    Args:
        root: Where the system's files lie.
    """
    table = root / "proc/meminfo"
    if not table.exists():
        return None
    machine = 1024 * (_field(table, "MemAvailable:") + _field(table, "SwapFree:"))
    return max(0, min([machine, *_group_rooms(root)]))


def _group_rooms(root: Path) -> Iterator[int]:
    """What each control group of this process that has a limit, and each above it, leaves."""
    mounts = root / "sys/fs/cgroup"
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder = mounts / controllers / path.lstrip("/")
        # In a container the path may be the host's, and the mount the container's own group.
        for group in (folder, *folder.parents):
            if group.is_relative_to(mounts):
                yield from _room(group)


def _room(group: Path) -> Iterator[int]:
    for limit, use, cache in _GROUP_FILES:
        if (group / limit).exists() and (text := (group / limit).read_text().strip()) != "max":
            yield int(text) - int((group / use).read_text()) + _field(group / "memory.stat", cache)


def _field(table: Path, name: str) -> int:
    """The number behind ``name`` at the beginning of a line."""
    found = (line.split() for line in table.read_text().splitlines())
    return next(int(words[1]) for words in found if words[0] == name)
