"""Nothing is half written: files and folders appear whole or not at all."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from star_export.errors import PlatformError
from star_export.files import (
    atomic_open,
    clear_scratch,
    sha256,
    staging_folder,
    staging_name,
    write_json,
)

# Writes a file of 1 MB through one of the two helpers where files may have 64 kB.
FULL_DISK = """
import resource, sys
from pathlib import Path
from star_export.errors import PlatformError
from star_export.files import atomic_open, staging_folder

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
target = Path(sys.argv[2])
try:
    if sys.argv[1] == "file":
        with atomic_open(target) as file:
            file.write(bytes(1 << 20))
    else:
        with staging_folder(target, overwrite=True) as folder:
            (folder / "small").write_bytes(bytes(10))
            (folder / "large").write_bytes(bytes(1 << 20))
except (OSError, PlatformError) as error:
    print(type(error).__name__, error)
"""


def fill_disk(kind: str, target: Path) -> str:
    command = [sys.executable, "-c", FULL_DISK, kind, str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def tree(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, hidden ones included, with its text."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_then(error: type[BaseException], file: BinaryIO) -> None:
    file.write(b"half")
    raise error


@pytest.fixture
def old_bundle(tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("old")
    return target


def test_sha256_of_more_than_one_piece(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes((1 << 20) + 1))
    # `head -c 1048577 /dev/zero | sha256sum`
    assert sha256(tmp_path / "a") == "2cb74edba754a81d121c9db6833704a8e7d417e5b13d1a19f4a52f007d644264"


def test_atomic_open_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_open(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"a.txt": "new"}
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_open_keeps_old_content_on_error(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_open(path) as file:
        write_then(error, file)
    assert tree(tmp_path) == {"a.txt": "old"}


def test_the_temporary_file_is_on_the_disk_of_the_target(tmp_path: Path) -> None:
    """Else it could not take its place at once."""
    with atomic_open(tmp_path / "a.txt"):
        [temporary] = entries(tmp_path)
        assert temporary.startswith(".a.txt.")


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "a.txt", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError, match=r"directory") as caught, atomic_open(path):
            pass
        assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError, match="another"), atomic_open(tmp_path / "a.txt"):
        (tmp_path / "another").read_bytes()
    assert tree(tmp_path) == {}


def test_write_json_is_readable_and_keeps_non_ascii(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Zürich"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Zürich" in text
    assert json.loads(text) == {"name": "Zürich"}


def test_staging_folder_becomes_the_target(tmp_path: Path) -> None:
    target = tmp_path / "new" / "parents" / "bundle"
    with staging_folder(target, overwrite=False) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert tree(target.parent) == {"bundle/a": "1"}
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("overwrite", [True, False])
def test_staging_folder_leaves_nothing_on_error(
    tmp_path: Path, error: type[BaseException], overwrite: bool
) -> None:
    with (
        pytest.raises(error),
        staging_folder(tmp_path / "bundle", overwrite=overwrite) as folder,
        (folder / "a").open("wb") as file,
    ):
        write_then(error, file)
    assert entries(tmp_path) == []


def test_overwrite_keeps_the_old_one_until_the_new_is_ready(old_bundle: Path) -> None:
    with staging_folder(old_bundle, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
        assert (old_bundle / "manifest.json").read_text() == "old"
    assert tree(old_bundle.parent) == {"bundle/manifest.json": "new"}
    assert entries(old_bundle.parent) == ["bundle"]


def test_overwrite_keeps_the_old_one_on_error(old_bundle: Path) -> None:
    with pytest.raises(ValueError, match="stop"), staging_folder(old_bundle, overwrite=True):
        raise ValueError("stop")
    assert tree(old_bundle.parent) == {"bundle/manifest.json": "old"}
    assert entries(old_bundle.parent) == ["bundle"]


def test_overwrite_puts_the_old_one_back_when_the_rename_fails(old_bundle: Path) -> None:
    with (
        pytest.raises(PlatformError, match=r"could not write .*bundle"),
        staging_folder(old_bundle, overwrite=True) as folder,
    ):
        folder.rmdir()  # nothing left to rename
    assert tree(old_bundle.parent) == {"bundle/manifest.json": "old"}
    assert entries(old_bundle.parent) == ["bundle"]


def test_overwrite_survives_an_interrupt_in_the_swap(
    old_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staging_folder(old_bundle, overwrite=True):
        pass
    assert tree(old_bundle.parent) == {"bundle/manifest.json": "old"}
    assert entries(old_bundle.parent) == ["bundle"]


def test_an_existing_target_is_not_replaced_unasked(old_bundle: Path) -> None:
    with (
        pytest.raises(PlatformError, match="Directory not empty"),
        staging_folder(old_bundle, overwrite=False) as folder,
    ):
        (folder / "manifest.json").write_text("new")
    assert tree(old_bundle.parent) == {"bundle/manifest.json": "old"}
    assert entries(old_bundle.parent) == ["bundle"]


def test_an_error_of_something_else_is_no_lack_of_space(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="elsewhere"),
        staging_folder(tmp_path / "bundle", overwrite=False),
    ):
        (tmp_path / "elsewhere").read_bytes()


def test_a_folder_that_cannot_be_written_is_no_lack_of_space(old_bundle: Path) -> None:
    with (
        pytest.raises(PlatformError, match="No such file or directory; nothing was left behind, mend that"),
        staging_folder(old_bundle, overwrite=True) as folder,
    ):
        (folder / "missing" / "file").write_text("")


# Stages a folder, then waits; "swap" moves the old one away first, as an overwrite does.
KILLED = """
import sys, time
from pathlib import Path
from star_export.files import staging_folder

target = Path(sys.argv[1])
with staging_folder(target, overwrite=True) as folder:
    (folder / "large").write_text("half")
    if sys.argv[2] == "swap":
        (folder.parent / "old").mkdir()
        target.rename(folder.parent / "old" / target.name)
    print("ready", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def staging_process(target: Path, kind: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", KILLED, str(target), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_what_killed_processes_left_goes_and_what_running_ones_use_stays(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with staging_process(target) as killed:
        killed.kill()
        killed.wait()
        [left] = entries(tmp_path)
    with staging_process(target):
        [used] = entries(tmp_path)
        assert used != left
        with staging_folder(target, overwrite=False) as folder:
            (folder / "a").write_text("1")
        assert entries(tmp_path) == [used, "bundle"]
        assert tree(target) == {"a": "1"}


@pytest.mark.parametrize("later", ["", "a newer one"])
def test_a_bundle_moved_away_by_a_killed_overwrite_comes_back(old_bundle: Path, later: str) -> None:
    with staging_process(old_bundle, "swap") as killed:
        killed.kill()
        killed.wait()
    assert not old_bundle.exists()
    if later:
        old_bundle.mkdir()
        (old_bundle / "manifest.json").write_text(later)
    clear_scratch(old_bundle.parent, staging_name(old_bundle))
    assert tree(old_bundle.parent) == {"bundle/manifest.json": later or "old"}
    assert entries(old_bundle.parent) == ["bundle"]


def test_folders_of_other_names_are_not_leftovers(tmp_path: Path) -> None:
    mine = tmp_path / ".bundle.partial-notes"
    mine.mkdir()
    (mine / "mine").write_text("keep")  # no lock: nothing of ours
    with staging_folder(tmp_path / "bundl*", overwrite=False):
        pass
    with staging_folder(tmp_path / "bundle", overwrite=False):
        pass
    assert tree(mine) == {"mine": "keep"}


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PlatformError, match="cannot write beside"),
        staging_folder(tmp_path / "file" / "bundle", overwrite=False),
    ):
        pytest.fail("the block must not run")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    assert fill_disk("file", tmp_path / "a.txt").startswith("OSError")
    assert tree(tmp_path) == {"a.txt": "old"}


def test_a_full_disk_leaves_the_old_bundle(old_bundle: Path) -> None:
    output = fill_disk("folder", old_bundle)
    assert output.startswith("PlatformError could not write")
    assert "free space" in output
    assert tree(old_bundle.parent) == {"bundle/manifest.json": "old"}
    assert entries(old_bundle.parent) == ["bundle"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    assert fill_disk("folder", tmp_path / "bundle").startswith("PlatformError")
    assert entries(tmp_path) == []
