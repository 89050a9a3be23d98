"""Every command's help fits two screens of 50 lines and 80 columns, and cuts no name."""

import re

import pytest
from typer.main import get_command

from star_export.cli.commands import app

from .conftest import Cli

COMMANDS = get_command(app).commands


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_two_screens(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = cli(command, "--help")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 80
    assert "…" not in outcome.out
    words = set(re.findall(r"--[\w-]+", outcome.out))
    assert words >= {name for option in COMMANDS[command].params for name in option.opts if "--" in name}


def test_build_groups_its_options(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    printed = cli("build", "--help").out
    panels = re.findall(r"^╭─ (.+?) ─", printed, re.MULTILINE)
    named = ["Model", "Pruning", "Sizes of KV caches and engines", "Precision", "Engines", "Output"]
    assert panels == ["Options", *named]
    own = printed[: printed.index("Model ─")]
    assert re.findall(r"^│ (--[\w-]+)", own, re.MULTILINE) == ["--json", "--help"]


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_are_said_once(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for line in cli(command, "--help").out.splitlines():
        assert line.count("[default") <= 1, line
