"""Files that are written whole or not at all."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, Timeout

from star_export.errors import FULL, PlatformError, option

_CHUNK = 1 << 20
_LOCK, _OLD = "lock", "old"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when the block succeeds.

    Raises:
        OSError: If it cannot be written; it names ``path``, not the temporary file.
    """
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        if name and error.filename != name and error.errno not in FULL:
            raise  # of something else in the block
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, atomically."""
    with atomic_open(path) as file:
        file.write((json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder in ``parent`` for the time of the block.

    A process that is killed leaves its folder behind; the next one that asks for the same name
    removes it. The lock inside tells whether its process still runs.

    Args:
        parent: An existing folder.
        name: How the folder's name begins; hidden, so that nobody takes it for a result.
    """
    clear_scratch(parent, name)
    folder, lock = _locked_folder(parent, name)
    try:
        yield folder
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            _remove(folder)


def clear_scratch(parent: Path, name: str) -> None:
    """Remove the scratch folders of processes that are gone; put back what one of them had moved away."""
    for folder in parent.glob(f"{glob.escape(name)}*/"):
        if not (folder / _LOCK).is_file():
            continue
        lock = FileLock(folder / _LOCK, timeout=0)
        with contextlib.suppress(OSError, Timeout), lock:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a scratch folder, after putting back what was moved into it and not replaced."""
    for moved in (folder / _OLD).glob("*"):
        if not (folder.parent / moved.name).exists():
            moved.rename(folder.parent / moved.name)
    shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(parent: Path, name: str) -> tuple[Path, BaseFileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=name))
        lock = FileLock(folder / _LOCK, timeout=0)
        with contextlib.suppress(Timeout):
            lock.acquire()
            if (folder / _LOCK).is_file():  # nobody took it for a leftover before it was locked
                return folder, lock


@contextmanager
def staging_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` when the block succeeds.

    Args:
        target: Folder to create; its parent is made when missing.
        overwrite: Replace an existing ``target``; it stays whole until the new one is ready.

    Raises:
        PlatformError: If the disk is full or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(target.parent, staging_name(target)))
            folder = scratch / "new"
            folder.mkdir()
        except OSError as error:
            raise PlatformError(f"cannot write beside {target}: {error.strerror or error}") from error
        try:
            yield folder
            _swap(folder, target, scratch / _OLD, overwrite=overwrite)
        except OSError as error:
            if not _concerns(error, scratch, target):
                raise
            remedy = "free space" if error.errno in FULL else "mend that"
            raise PlatformError(
                f"could not write {target}: {error.strerror or error}; "
                f"nothing was left behind, {remedy} or choose another {option('output')}"
            ) from error


def staging_name(target: Path) -> str:
    """How the scratch folders begin in which ``target`` is made."""
    return f".{target.name}.partial-"


def _concerns(error: OSError, *folders: Path) -> bool:
    """Whether an error comes from writing to one of ``folders``, and not from something else in the block."""
    if error.errno in FULL:
        return True
    names = [Path(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    return any(name.is_relative_to(folder) for name in names for folder in folders)


def _swap(folder: Path, target: Path, old: Path, *, overwrite: bool) -> None:
    if not (overwrite and target.exists()):
        folder.rename(target)  # refuses a folder that is not empty
        return
    old.mkdir()
    target.rename(old / target.name)  # the end of the scratch folder puts it back if need be
    folder.rename(target)
