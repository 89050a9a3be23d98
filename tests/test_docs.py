"""What the documentation shows works as shown."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from star_export.build import BuildOptions, build
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.decoders import DECODERS
from star_export.errors import CheckpointError
from star_export.testing.checkpoints import PRESETS, make_checkpoint
from star_export.validation.check import check_bundle
from star_export.validation.probes import make_probes

ROOT = Path(__file__).parents[1]


def test_python_example(bundle: Callable[..., Path], picture: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) == 8
    code = "".join(blocks)
    (tmp_path / "bundle").symlink_to(bundle("mha"))
    shutil.copy(picture, tmp_path / "picture.png")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "518 patches entered the decoder, 29 stayed" in done.stdout


@pytest.fixture
def seed_oss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint of the decoder that docs/adding-a-model.md adds, which is added."""
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding-a-model.md").read_text(), re.DOTALL)
    module: dict[str, Any] = {}
    exec(code, module)
    monkeypatch.setitem(DECODERS, "seed_oss", module["text_spec"])
    shape = replace(PRESETS["vicuna"], decoder="seed_oss", kv_heads=2)
    return make_checkpoint(tmp_path / "checkpoint", shape)


def test_adding_a_decoder(seed_oss: Path, tmp_path: Path) -> None:
    report = build(
        BuildOptions(
            model=str(seed_oss), output=tmp_path / "bundle", keep=20, max_text_tokens=64, max_new_tokens=8
        )
    )
    text = report.spec.model.text
    assert (text.q_bias, text.k_bias, text.v_bias, text.o_bias) == (True, True, True, False)
    assert check_bundle(tmp_path / "bundle", probes=make_probes(2), max_new_tokens=8).passed


def test_the_added_decoder_refuses_what_it_cannot(seed_oss: Path) -> None:
    config = json.loads((seed_oss / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu"
    (seed_oss / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="decoder activation 'gelu' is not supported"):
        open_checkpoint(str(seed_oss))


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted(ROOT.glob("models/*/README.md")), *sorted((ROOT / "docs").glob("*.md"))],
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
