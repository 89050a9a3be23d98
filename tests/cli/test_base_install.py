"""``run`` in an environment that holds the base install and nothing else."""

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ABSENT = ("torch", "transformers", "onnx", "onnxscript", "safetensors")


def with_dependencies(name: str, found: dict[str, Distribution]) -> None:
    """Collect a distribution and all it needs without extras."""
    if name.lower() in found:
        return
    found[name.lower()] = distribution(name)
    for line in found[name.lower()].requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            with_dependencies(requirement.name, found)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the base install."""
    return environment(tmp_path_factory)


@pytest.fixture(scope="module")
def python_with_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with onnx, and still without torch."""
    return environment(tmp_path_factory, "onnx")


def environment(tmp_path_factory: pytest.TempPathFactory, *packages: str) -> Path:
    """The interpreter of a new environment: this package as a wheel, its dependencies linked from here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    install_copy(tmp_path_factory.mktemp("source"), site)
    found: dict[str, Distribution] = {}
    for name in ("star-export", *packages):
        with_dependencies(name, found)
    del found["star-export"]
    for part in found.values():
        for top in {file.parts[0] for file in part.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(part.locate_file(top))))
    return folder / "bin" / "python"


def install_copy(source: Path, site: Path) -> None:
    """Install a copy of the source tree, without network."""
    for name in ("star_export", "graphs", "engines", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", site)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True)


def call(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, cwd="/")


def test_neither_torch_nor_transformers(python: Path) -> None:
    code = f"from importlib.util import find_spec; print([m for m in {ABSENT} if find_spec(m)])"
    assert call(python, "-c", code).stdout == "[]\n"


def test_run(python: Path, bundle: Callable[..., Path], picture: Path) -> None:
    request = ("run", bundle("mha"), "--image", picture, "--prompt", "Where?", "--max-new-tokens", 4)
    done, here = (call(p, "-m", "star_export.cli", *request) for p in (python, Path(sys.executable)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == here.stdout


def test_eval(python: Path, bundle: Callable[..., Path], tmp_path: Path) -> None:
    request = ("eval", bundle("mha"), "--limit", 1, "--answers", tmp_path / "answers.jsonl")
    done = call(python, "-m", "star_export.cli", *request, "--no-baseline")
    assert done.returncode == 0, done.stderr
    assert "| **all** |" in done.stdout
    with_baseline = call(python, "-m", "star_export.cli", *request)
    assert with_baseline.returncode == 2
    assert with_baseline.stderr.strip().endswith("run: pip install 'star-export[export]'")


def test_bench_of_bundles_alone(python: Path, bundle: Callable[..., Path], picture: Path) -> None:
    request = ("bench", bundle("mha"), "--image", picture, "--repeats", 1, "--max-new-tokens", 1)
    done = call(python, "-m", "star_export.cli", *request, "--side", "pruned", "--json")
    assert done.returncode == 0, done.stderr
    assert '"peak_memory"' in done.stdout
    with_baseline = call(python, "-m", "star_export.cli", *request, "--side", "unpruned")
    assert with_baseline.returncode == 2
    assert with_baseline.stderr.strip().endswith("run: pip install 'star-export[export]'")


def test_plan_of_an_alias(python: Path, checkpoint: Callable[[str], Path]) -> None:
    done = call(python, "-m", "star_export.cli", "plan", "-m", "llava-1.5-7b", "--gpu", "this", "--keep", 115)
    assert done.returncode == 0, done.stderr
    assert "49.8 %" in done.stdout
    with_config = call(python, "-m", "star_export.cli", "plan", "-m", checkpoint("mha"))
    assert with_config.returncode == 2
    assert with_config.stderr.strip().endswith("run: pip install 'star-export[export]'")


@pytest.mark.parametrize(
    "command",
    [
        ("build", "--model", "x", "-o", "y"),
        ("check", "x"),
        ("show", "x", "-i", "y", "-p", "z"),
        ("compare", "--model", "x"),
        ("tune", "x"),
    ],
)
def test_what_needs_the_extra_says_so(python: Path, command: tuple[str, ...]) -> None:
    done = call(python, "-m", "star_export.cli", *command)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("run: pip install 'star-export[export]'")
    assert "Traceback" not in done.stderr


def test_a_schema_needs_an_extra(python: Path, bundle: Callable[..., Path], picture: Path) -> None:
    request = ("run", bundle("mha"), "-i", picture, "-p", "What?", "--schema", "{}")
    done = call(python, "-m", "star_export.cli", *request)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith("run: pip install 'star-export[schema]'")


def test_the_client_needs_an_extra_of_its_own(python: Path, picture: Path) -> None:
    done = call(python, "-m", "star_export.cli", "client", "localhost:1", "-i", picture, "-p", "What?")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith("run: pip install 'star-export[client]'")


def test_scores_need_onnx_and_no_torch(
    python_with_onnx: Path, bundle: Callable[..., Path], picture: Path, tmp_path: Path
) -> None:
    drawing = tmp_path / "drawing.png"
    few = ("--image", picture, "--prompt", "Where?")
    for command in (("check", "--scores", *few), ("show", *few, "--max-new-tokens", 1, "-o", drawing)):
        done = call(python_with_onnx, "-m", "star_export.cli", *command, bundle("mha"))
        assert done.returncode == 0, done.stderr
    assert drawing.exists()


def test_doctor_says_what_is_missing(python: Path) -> None:
    done = call(python, "-m", "star_export.cli", "doctor", "--json")
    assert done.returncode == 0
    assert "pip install 'star-export[export]'" in done.stdout
