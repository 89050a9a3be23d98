"""What ``star-export bench`` prints on a terminal of 80 columns."""

import pytest
from rich.cells import cell_len

from star_export.cli import output
from star_export.cli.bench import _print_tables
from star_export.flops import PrefillFlops
from star_export.measure.bench import MEASURES, BenchReport, SideReport


def side(name: str, *, memory: int | None = 123_400_000, device: int | None = None) -> SideReport:
    return SideReport(
        name=name,
        median_ms=dict.fromkeys(MEASURES, 12345.67),
        range_ms=dict.fromkeys(MEASURES, (9876.54, 23456.78)),
        speedup=dict.fromkeys(MEASURES, 12.345),
        speedup_range=dict.fromkeys(MEASURES, (10.5, 23.456)),
        device="cpu" if device is None else "cuda",
        peak_memory=memory,
        device_memory=device,
    )


def test_times_ratios_and_their_spread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output.out, "_width", 80)
    sides = (side("pruned", device=9_876_500_000), side("unpruned", memory=None), side("hf-eager"))
    flops = {"pruned": PrefillFlops(fastv=1e9, exact=1e9), "full": PrefillFlops(fastv=2e9, exact=3e9)}
    kv_bytes = {"early": 2_000_000, "late": 1_000_000, "unpruned": 6_000_000}
    report = BenchReport(
        bundle="b", tiles=5, image_tokens=2929, entering=2640, keep=320, text_tokens=12, repeats=5,
        sides=sides, kv_bytes=kv_bytes, flops=flops, vision_flops=3.2e12,
    )  # fmt: skip
    _print_tables(report)
    printed = capsys.readouterr().out
    assert max(map(cell_len, printed.splitlines())) <= 80
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in printed.splitlines() if line[0] == "│"]
    times, ratio = "12,346 (9,877-23,457)", "12.35 (10.50-23.46)"
    assert rows[:4] == [
        ["vision", "pruned", times, ""],
        ["", "unpruned", times, ratio],
        ["", "hf-eager", times, ratio],
        ["prefill", "pruned", times, ""],
    ]
    headings = [row[0] for row in rows if row[0]]
    assert headings == ["vision", "prefill", "decode, per token", "TTFT", "peak memory", "GPU memory"]
    assert rows[-4:] == [
        ["peak memory", "pruned", "123.4 MB", ""],
        ["", "unpruned", "unknown", ""],
        ["", "hf-eager", "123.4 MB", ""],
        ["GPU memory", "pruned", "9,876.5 MB", ""],
    ]
    assert "unpruned 6.0 MB (2.00x)" in printed
    assert "1.0 of 3.0 GFLOP (3.00x)" in printed
    assert "keep 320 of 2,929 visual tokens, 12 text tokens, 5 rounds" in printed
    assert "Vision tower: 5 tiles, 3,200.0 GFLOP" in printed
