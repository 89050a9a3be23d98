"""What `cmake --install` gives: the program of docs/cpp.md builds against it; no wheel has any of it."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from star_export.answer.pipeline import load
from tests.cpp.talker import BUILD

ROOT = Path(__file__).parents[2]
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
QUESTION = "What color is the square?"


def run(*command: object) -> str:
    environment = {**os.environ, "STAR_ONNXRUNTIME": str(LIBRARY)}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (BUILD / "cmake_install.cmake").is_file():
        pytest.skip(f"{BUILD} is no build folder: run `make test-cpp`, or set STAR_EXPORT_CPP to one")
    prefix = tmp_path_factory.mktemp("star")
    run("cmake", "--install", BUILD, "--prefix", prefix)
    return prefix


def block(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/cpp.md").read_text(), re.DOTALL)
    return str(found)


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_page(prefix: Path, bundle: Any, tmp_path: Path, kind: str) -> None:
    cmake = block("cmake")
    if kind == "static":
        cmake = cmake.replace("0.1 REQUIRED", "0.1 REQUIRED COMPONENTS static").replace(
            "::star)", "::star_static)"
        )
    (tmp_path / "CMakeLists.txt").write_text(cmake)
    (tmp_path / "answer.cpp").write_text(block("cpp"))
    build = tmp_path / "build"
    flags = "-Wall -Wextra -Wconversion -Wshadow -Werror -fno-rtti"  # a user may have any of them
    run("cmake", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_CXX_FLAGS={flags}")
    run("cmake", "--build", build)
    folder, picture = bundle("mini", max_images=3), ROOT / "docs/shapes.png"
    expected = load(folder).generate(picture, QUESTION, max_new_tokens=16).result()
    left = f"{len(expected.stage2_indices)} visual tokens were left"
    assert run(build / "answer", folder, picture, QUESTION) == f"{expected.text}\n{left}\n"
    refused = subprocess.run(
        [build / "answer", tmp_path, "x", "y"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "is not a bundle" in refused.stderr


def test_page_is_short() -> None:
    assert len(block("sh").splitlines()) == 10
    assert len(block("cpp").splitlines()) <= 18


def test_c_header(prefix: Path, tmp_path: Path) -> None:
    """It is C, without warnings."""
    (tmp_path / "a.c").write_text(
        "#include <star_c.h>\nint main(void) { return star_abi_version() != STAR_ABI_VERSION; }\n"
    )
    library = next(prefix.rglob("libstar.so"))
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{prefix / 'include'}"]
    run("cc", *flags, tmp_path / "a.c", "-o", tmp_path / "a", library, f"-Wl,-rpath,{library.parent}")
    run(tmp_path / "a")


def test_what_is_seen(prefix: Path) -> None:
    """Only the two public headers' functions and star::Error."""
    symbols = run("nm", "-DC", "--defined-only", next(prefix.rglob("libstar.so"))).splitlines()
    ours = {line.split(maxsplit=2)[2] for line in symbols if "star" in line}
    allowed = re.compile(
        r"star_|star::Pipeline::|star::Sampling::check|(typeinfo|vtable).* for star::Error|star::Error::"
    )
    assert [name for name in ours if not allowed.search(name)] == []


def test_versions() -> None:
    """Of the project, of the page and of Python."""
    import star_export

    project = (ROOT / "engines/cpp/CMakeLists.txt").read_text()
    assert f"project(star-export VERSION {star_export.__version__} " in project
    assert f"find_package(star-export {star_export.__version__.rpartition('.')[0]} REQUIRED)" in block(
        "cmake"
    )


def test_no_wheel_has_it() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        name: Path(setuptools["package-dir"].get(name, name.replace(".", "/")))
        for name in setuptools["packages"]
    }
    packed = [
        path
        for name, folder in folders.items()
        for pattern in ("*.py", *setuptools["package-data"].get(name, ()))
        for path in (ROOT / folder).glob(pattern)
    ]
    assert packed
    assert not [path for path in packed if path.is_relative_to(ROOT / "engines/cpp")]
