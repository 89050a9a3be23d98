"""The manifest suffices: a script that knows only the documents answers as the pipeline does."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from star_export import load

READER = Path(__file__).with_name("second_reader.py")
PICTURE = Path(__file__).parents[1] / "docs/shapes.png"


def read(folder: Path, question: str) -> dict[str, object]:
    """What the script prints, in a process that could not import the package."""
    program = (
        "import runpy, sys; sys.modules['star_export'] = None; "
        f"sys.argv[0] = {str(READER)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, str(folder), str(PICTURE), question]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.walk(ast.parse(READER.read_text()))
    names = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    tree = ast.walk(ast.parse(READER.read_text()))
    names |= {str(node.module) for node in tree if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "sys", "pathlib", "numpy", "onnxruntime", "PIL", "tokenizers"}


@pytest.mark.parametrize(
    ("preset", "options", "question"),
    [
        ("mha", {}, "What is in the picture?"),
        ("mha", {"prune": False}, "What is in the picture?"),
        ("gqa", {"dtype": "float16"}, "  Where is it? "),
        ("mini", {}, "What color is the square?"),
    ],
)
def test_it_answers_as_the_pipeline_does(
    bundle: Callable[..., Path], preset: str, options: dict[str, object], question: str
) -> None:
    folder = bundle(preset, **options)
    wanted = load(folder, threads=1).generate(PICTURE, question).result()
    found = read(folder, question)
    assert (found["token_ids"], found["text"]) == (list(wanted.token_ids), wanted.text)
    assert found["token_ids"]


def test_it_refuses_another_format(bundle: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("manifest.json", "preprocessor.json"):
        values = json.loads((bundle("mha") / name).read_bytes())
        (tmp_path / name).write_text(json.dumps({**values, "format_version": 6}))
    with pytest.raises(AssertionError, match="another format"):
        read(tmp_path, "What?")
