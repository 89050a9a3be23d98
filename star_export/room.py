"""Whether disk and memory hold what is about to be done."""

import shutil
from pathlib import Path

from star_export.errors import PlatformError, option
from star_export.memory import available_bytes


def check_disk(folder: Path, needed: int) -> None:
    """Refuse to write ``needed`` bytes where there are fewer.

    Raises:
        PlatformError: With both figures.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PlatformError(
            f"the bundle needs {_size(needed)} and the disk has {_size(free)} free; "
            f"free space or choose another {option('output')}"
        )


def check_memory(needed: int) -> None:
    """Refuse to take ``needed`` bytes more where there are fewer, as far as the system tells.

    Raises:
        PlatformError: With both figures.
    """
    available = available_bytes()
    if available is not None and available < needed:
        raise PlatformError(
            f"the build needs about {_size(needed)} of memory and {_size(available)} are free; "
            "end other programs, or raise this container's limit"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
