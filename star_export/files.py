"""Files that are written whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from star_export.errors import PlatformError

_CHUNK = 1 << 20


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when the block succeeds."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, atomically."""
    with atomic_open(path) as file:
        file.write((json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def staging_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` when the block succeeds.

    Args:
        target: Folder to create; its parent is made when missing.
        overwrite: Replace an existing ``target``; it stays whole until the new one is ready.

    Raises:
        PlatformError: If the disk is full or the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
    except OSError as error:
        raise PlatformError(f"cannot write beside {target}: {error.strerror or error}") from error
    try:
        folder.chmod(0o755)
        yield folder
        _swap(folder, target, overwrite=overwrite)
    except OSError as error:
        raise PlatformError(
            f"could not write the bundle to {target}: {error.strerror or error}; "
            "nothing was left behind, free space or choose another --output"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(folder: Path, target: Path, *, overwrite: bool) -> None:
    if not (overwrite and target.exists()):
        folder.rename(target)  # refuses a folder that is not empty
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
    target.rename(old / target.name)
    try:
        folder.rename(target)
    except BaseException:
        (old / target.name).rename(target)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
