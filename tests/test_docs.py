"""What the documentation shows works as shown."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_python_example(bundle: Callable[..., Path], picture: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    code = "".join(blocks)
    (tmp_path / "bundle").symlink_to(bundle("mha"))
    shutil.copy(picture, tmp_path / "picture.png")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "518 patches entered the decoder, 29 stayed" in done.stdout


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "models/mini/README.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_named_files_exist() -> None:
    """Paths in backticks that look like files of the repository are files of the repository."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(
            r"`((?:star_export|graphs|engines|cli|tests|models)/[\w./]+\.\w+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_polygraphy_commands(bundle: Callable[..., Path], tmp_path: Path) -> None:
    """They run on a bundle's own files as shown, with TensorRT-RTX's switch."""
    text = (ROOT / "docs/tensorrt.md").read_text()
    [block] = re.findall(r"```sh\n(export POLYGRAPHY.*?)```", text, re.DOTALL)
    (tmp_path / "build" / "demo").mkdir(parents=True)
    (tmp_path / "build" / "demo" / "engines").symlink_to(bundle("gqa", dtype="float16"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert block.count("polygraphy ") == 4
    assert "Graph is fully supported by TensorRT" in done.stdout + done.stderr
    assert "PASSED" in done.stdout + done.stderr
    assert (tmp_path / "vision.engine").stat().st_size > 1000
