"""The C++ plugin library: CMake, what it exports and answers, and how Python loads it.

Everything that needs TensorRT's headers runs when TENSORRT_ROOT is set (and CUDA_HOME, where CUDA's
headers are not in /usr/local/cuda).
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from star_export.engines.plugins import library
from star_export.engines.plugins.nvrtc import FOLDER
from star_export.errors import PlatformError, SettingsError, StarExportError

HERE = Path(__file__).parent
ROOT = os.environ.get("TENSORRT_ROOT")

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
needs_lean = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_lean") is None, reason="tensorrt_lean is not installed"
)


def configure(folder: Path, *options: str, root: str | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TENSORRT_ROOT"}
    command = ["cmake", "-S", str(FOLDER), "-B", str(folder), *options]
    command += [f"-DTENSORRT_ROOT={root}"] if root else []
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_cmake
@pytest.mark.skipif(ROOT is not None, reason="TENSORRT_ROOT is set: the library is built instead")
def test_without_tensorrt_cmake_says_why_and_succeeds(tmp_path: Path) -> None:
    assert "Plugin library skipped: no NvInfer.h; set -DTENSORRT_ROOT=" in configure(tmp_path)
    subprocess.run(["cmake", "--build", str(tmp_path)], check=True, capture_output=True)


@pytest.fixture(scope="module", params=["nvcc", "NVRTC"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, its kernel compiled by nvcc or by NVRTC."""
    if ROOT is None:
        pytest.skip("TENSORRT_ROOT is not set: no TensorRT headers to build the library with")
    nvcc = shutil.which("nvcc")
    if request.param == "nvcc" and nvcc is None:
        pytest.skip("nvcc is not installed")
    chosen = nvcc if request.param == "nvcc" else "no"  # a false value: not searched for, not found
    folder = tmp_path_factory.mktemp("build")
    configure(folder, f"-DNVCC={chosen}", f"-DPython3_EXECUTABLE={sys.executable}", root=ROOT)
    subprocess.run(["cmake", "--build", str(folder)], check=True, capture_output=True)
    return folder / "libstar_export_plugins.so"


def test_exports_what_tensorrt_looks_for_and_needs_nothing_of_it(built: Path) -> None:
    command = ["nm", "--dynamic", "--demangle", str(built)]
    symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    exported = {line.split()[-1] for line in symbols if " T " in line}
    assert exported == {"getCreators", "setLoggerFinder"}
    assert [line for line in symbols if " U " in line and ("nvinfer" in line or " cu" in line)] == []


def test_answers_what_tensorrt_asks(built: Path, tmp_path: Path) -> None:
    cache = (built.parent / "CMakeCache.txt").read_text()
    includes = [line.partition("=")[2] for line in cache.splitlines() if "_INCLUDE:PATH=" in line]
    host = tmp_path / "host"
    command = ["g++", "-std=c++17", "-w", *(f"-I{folder}" for folder in includes)]
    subprocess.run([*command, str(HERE / "plugin_host.cpp"), "-o", str(host), "-ldl"], check=True)
    done = subprocess.run([host, built], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def load_in_new_process(*paths: Path) -> list[str]:
    """What ``library.load`` said to each path in one process, in whose registry the plugin stays."""
    code = """
import sys, pathlib, tensorrt_lean as trt
from star_export.engines.plugins import library
from star_export.errors import StarExportError
for path in sys.argv[1:]:
    try:
        library.load(trt, pathlib.Path(path), trt.Logger(trt.Logger.INFO))
        creator = trt.get_plugin_registry().get_creator("TopKGather", "1", "star")
        print(type(creator).__name__)
    except StarExportError as error:
        print(f"{type(error).__name__}: {error}")
"""
    command = [sys.executable, "-c", code, *map(str, paths)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line for line in output.splitlines() if "[TRT]" not in line]


@needs_lean
def test_loads_into_a_real_registry_and_again(built: Path) -> None:
    assert load_in_new_process(built, built) == ["IPluginCreatorV3One"] * 2


@needs_lean
def test_refuses_libraries_without_the_plugin() -> None:
    libs = Path(str(importlib.util.find_spec("tensorrt_lean_libs").origin)).parent  # type: ignore[union-attr]
    [runtime] = libs.glob("libnvinfer_lean.so.*")
    [other] = libs.glob("libnvinfer_vc_plugin.so.*")
    no_plugins, no_star = load_in_new_process(runtime, other)
    assert "exports no getCreators; build it as docs/kernels.md says" in no_plugins
    assert "has no creator of star::TopKGather" in no_star


@pytest.mark.parametrize(("content", "error"), [(None, SettingsError), ("text", PlatformError)])
def test_refuses_files_that_are_no_library(
    content: str | None, error: type[StarExportError], tmp_path: Path
) -> None:
    path = tmp_path / "plugins.so"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=r"docs/kernels\.md"):
        library.load(None, path, None)
