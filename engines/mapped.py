"""The weights of a bundle in host memory: the files themselves, mapped once."""

import json
import mmap
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from star_export.errors import BundleError

#: Bytes before a safetensors header, which say how long it is.
_LENGTH = 8

#: Seconds between two times: a second's reading from memory is gigabytes.
_PAUSE = 0.02

Bytes = npt.NDArray[np.uint8]


def mapped_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The float32 tensors of a safetensors file, by name, where the system's file cache holds them.

    Raises:
        BundleError: If the file is damaged.
    """
    try:
        entries, data = _mapped(path)
        return {
            name: data[slice(*entry["data_offsets"])].view(np.float32).reshape(entry["shape"])
            for name, entry in entries.items()
            if entry.get("dtype") == "F32"
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def mapped_bytes(path: Path) -> dict[str, Bytes]:
    """The bytes of every tensor of a safetensors file, by name, likewise.

    Raises:
        BundleError: If the file is damaged.
    """
    try:
        entries, data = _mapped(path)
        tensors = {name: entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__"}
        return {name: data[slice(*offsets)] for name, offsets in tensors.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def let_go(tensors: Iterable[Any]) -> None:
    """Give back the memory of mapped files, where the system can; who reads them again has them again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapping in {tensor._mmap for tensor in tensors}:  # what np.memmap keeps its file in
            mapping.madvise(mmap.MADV_DONTNEED)


@contextmanager
def letting_go(tensors: Collection[Any]) -> Iterator[None]:
    """Do so again and again while a library copies them: few of the pages are there beside their copies."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_PAUSE):
            let_go(tensors)

    thread = threading.Thread(target=watch, name="star-export-weights", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        let_go(tensors)


def _mapped(path: Path) -> tuple[dict[str, Any], "np.memmap[Any, Any]"]:
    """The header of a safetensors file, and what lies behind it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        entries = json.loads(file.read(min(length, path.stat().st_size)))
    return entries, np.memmap(path, np.uint8, "r", offset=_LENGTH + length)


def _damaged(path: Path, error: Exception) -> BundleError:
    return BundleError(f"{path} is no weights file ({error}); copy or build the bundle again")
