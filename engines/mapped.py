"""The weights of a bundle in host memory: the files themselves, mapped once."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from star_export.errors import BundleError

#: Bytes before a safetensors header, which say how long it is.
_LENGTH = 8


def mapped_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The float32 tensors of a safetensors file, by name, where the system's file cache holds them.

    Raises:
        BundleError: If the file is damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            entries = json.loads(file.read(min(length, path.stat().st_size)))
        data = np.memmap(path, np.uint8, "r", offset=_LENGTH + length)
        return {
            name: data[slice(*entry["data_offsets"])].view(np.float32).reshape(entry["shape"])
            for name, entry in entries.items()
            if entry.get("dtype") == "F32"
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path} is no weights file ({error}); copy or build the bundle again") from error
