"""How time and memory grow: every axis has its points, and one point is measured for real."""

from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.bundle import open_bundle
from star_export.flops import Layout, prefill_flops
from star_export.measure import growth
from star_export.measure.growth import AXES, BASE, Finding, Measures, Point, draw, lines, measure, points


def test_every_axis_has_its_points_and_shares_the_base() -> None:
    found = points()
    assert len(found) == len(set(found)) == 1 + sum(len(values) - 1 for values in AXES.values())
    assert BASE in found
    assert Point(batch=8) in found


def made_up(point: Point) -> Finding:
    """Times twice what the shapes say, and a process of 50 bytes."""
    size = point.hidden * point.batch
    counted = Measures(prefill=size * point.text, decode=size, memory=size)
    found = Measures(prefill=2 * counted.prefill, decode=2 * size, memory=size + 50)
    at = {"text": point.text, "keep": point.keep, "batch": point.batch, "hidden": point.hidden}
    return Finding(at=at, found=found, counted=counted)


def test_arithmetic_is_drawn_in_the_measured_unit() -> None:
    findings = {point: made_up(point) for point in points()}
    for axis in AXES:
        for _, found, counted in lines(findings, "prefill", axis):
            assert found == counted
    memory = list(lines(findings, "memory", "batch"))
    assert memory == [(n, 512 * n + 50, 512 * n) for n in AXES["batch"]]
    assert draw(findings).startswith(b"\x89PNG")


def test_one_point_is_measured(
    bundle: Callable[..., Path], picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "RUNS", 1)
    (tmp_path / "64").symlink_to(bundle("mha", schedule="128@0"))
    found = measure(tmp_path, Point(hidden=64, text=3, keep=20, batch=2), picture)
    assert (found.at["keep"], found.at["batch"]) == (20, 2)
    assert found.found.prefill > 0
    assert found.found.decode > 0
    assert found.found.memory > 0
    text = open_bundle(tmp_path / "64").spec.model.text
    flops = prefill_flops(text, Layout(entering=20), text_tokens=int(found.at["text"]), query_tokens=0)
    assert found.counted.prefill == 2 * flops.exact
