"""The kernel benchmark, as far as it goes without a GPU; docs/kernels.md says what its arithmetic says."""

import math
import re
from pathlib import Path

import pytest

from star_export.measure.kernel_bench import CHANNELS, ROWS, Timing, Work, main, table

PAGE = (Path(__file__).parents[2] / "docs/kernels.md").read_text()


def test_the_page_prints_the_arithmetic() -> None:
    lines = re.findall(r"\| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", PAGE)
    assert len(lines) == 5
    for *size, megabytes, fast, slow in lines:
        moved = Work(*map(int, size)).bytes_moved
        assert [megabytes, fast, slow] == [f"{moved / d:.2f}" for d in (1e6, 3.35e6, 1e6)]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("rows", "k"), ROWS)
def test_buffers_do_not_fit_the_cache(rows: int, k: int, channels: int) -> None:
    cache = 50 << 20
    work = Work(rows, k, channels)
    assert work.sets(cache) * (rows + k) * 2 * channels > 1.9 * cache


def test_table() -> None:
    work = Work(576, 518, 1024)
    with_torch = Timing(work, kernel_us=4.0, torch_us=20.0, copy_gb_s=1000.0)
    assert with_torch.ratio == 5
    assert math.isclose(with_torch.share, work.bytes_moved / 4e6)
    assert table([with_torch]).splitlines()[-1].split() == [
        "576",
        "518",
        "1024",
        "2.13",
        "4.00",
        "20.00",
        "5.0x",
        "53%",
    ]
    alone = table([Timing(work, kernel_us=4.0, torch_us=None, copy_gb_s=1000.0)])
    assert "torch has no CUDA here" in alone
    assert alone.splitlines()[-1].split() == ["576", "518", "1024", "2.13", "4.00", "-", "-", "53%"]


def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        from cuda.bindings import driver

        driver.cuInit(0)
    except (ImportError, RuntimeError):
        assert main([]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    else:
        pytest.skip("there is an NVIDIA driver here")
