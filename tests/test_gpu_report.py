"""The report of `make gpu`, on machines with and without a GPU."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from star_export.cli.commands import app

SCRIPT = Path(__file__).parents[1] / ".ci" / "gpu_report.py"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_report", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_report"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_step_that_fails_leaves_its_exact_reason(report: ModuleType, tmp_path: Path) -> None:
    step = report.run_step("check", "check", tmp_path / "nowhere")
    assert step.code == 2
    assert "is not a bundle: it has no manifest.json" in step.reason
    died = report.run_step("died", "-c", "import os; print('half', flush=True); os.abort()", cli=False)
    assert died.reason.startswith("exit -6")
    text = report.render([step, died], {"parts": [{"name": "GPU", "works": False, "found": "none"}]})
    assert "| GPU | no | none |" in text
    assert f"| check | {step.reason} |" in text
    assert "half" in text


def test_every_option_of_a_step_is_one(report: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run: a fake notes what would be."""
    asked: list[tuple[str, tuple[str, ...]]] = []

    def note(title: str, *words: object, cli: bool = True) -> object:
        if cli:
            asked.append((title, tuple(map(str, words))))
        return report.Step(title, "", 0.0, 0, "", "")

    monkeypatch.setattr(report, "run_step", note)
    report.run_steps(Path("folder"), Path("checkpoint"))
    commands = get_command(app).commands
    for title, (command, *words) in asked:
        parameters = commands[command].params
        known = {name for each in parameters for name in (*each.opts, *each.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, title
    titles = [title for title, _ in asked]
    for kind in ("bundle", "int4", "int8"):
        for what in (
            "engines of two sizes",
            "check of both sizes",
            "bench, room for 128",
            "bench, room for all",
        ):
            assert f"tensorrt-rtx {kind}, {what}" in titles


def test_results_become_tables(report: ModuleType) -> None:
    done = report.run_step("doctor", "doctor", "--json")
    assert done.reason == ""
    assert {part["name"] for part in done.data["parts"]} >= {"GPU", "backend tensorrt-rtx"}
    bench = (
        '{"sides": [{"name": "pruned", "median_ms": {"prefill": 2.0}, "speedup": {"prefill": 1.0}, '
        '"device_memory": 5000000}]}'
    )
    check = (
        '{"passed": true, "reference": "ck", "cases": [{"stages": ['
        '{"stage": "prefill_logits", "error": 0.5, "tolerance": 1.0, "status": "pass"}, '
        '{"stage": "prefill_logits", "error": 0.75, "tolerance": 1.0, "status": "pass"}]}]}'
    )
    scored = '{"scores": {"keep 29": {"accuracy": {"value": 0.925}}}}'
    outputs = (("bench", bench), ("check", check), ("accuracy", scored))
    steps = [report.Step(n, n, 1.0, 0, o, "") for n, o in outputs]
    text = report.render(steps, done.data)
    assert "| pruned | 2.00 (1.00x) | 5 MB |" in text
    assert "| prefill_logits | 0.75 | 1 | pass |" in text
    assert "- keep 29: 0.9250 right" in text
