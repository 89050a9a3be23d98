"""A build's memory does not grow with the model."""

import subprocess
import sys
from pathlib import Path

import pytest

BUILD = """
import sys
from pathlib import Path
from star_export.build import BuildOptions, build

build(BuildOptions(model=sys.argv[1], output=Path(sys.argv[2])))
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
LARGEST_TENSOR = 32064 * 2048 * 4  # the embedding, in float32


@pytest.mark.slow
def test_peak_memory_of_a_3_gb_build(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    make = [sys.executable, "-m", "star_export.testing.checkpoints", "large", checkpoint]
    subprocess.run(make, check=True)
    assert sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) > 3.0e9
    command = [sys.executable, "-c", BUILD, checkpoint, tmp_path / "bundle"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak = 1024 * int(done.stdout)
    print(f"peak memory {peak / 1e9:.2f} GB")
    assert peak < 1.5e9 + LARGEST_TENSOR
