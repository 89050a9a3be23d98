"""How much memory this process takes."""

from pathlib import Path
from typing import Literal

_STATUS = Path("/proc/self/status")


def resident_bytes(moment: Literal["now", "peak"]) -> int | None:
    """Resident bytes of this process; None where the system has no ``/proc`` to say.

    Not from ``getrusage``: its peak starts at the parent's, which a fork had for a moment.
    """
    if not _STATUS.exists():
        return None
    field = {"now": "VmRSS:", "peak": "VmHWM:"}[moment]
    return 1024 * int(_STATUS.read_text().partition(field)[2].split()[0])
