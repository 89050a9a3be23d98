"""``star-export check --scores``: a sound bundle passes, uniform scores fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star_export.build import BuildOptions, build
from star_export.graphs.layers import attention_map

from .conftest import refused

BundleOf = Callable[..., Path]


def test_a_sound_bundle_passes(cli: Any, bundle: BundleOf) -> None:
    outcome = cli("check", bundle("mha"), "--scores", "--keep", 64, "--keep", 29, "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert report["passed"]
    rows = [(row["picture"], row["stage"], row["kept"]) for row in report["stages"]]
    each = [(1, 518), (2, 64), (2, 29)]
    assert rows == [(f"probe {probe}", *row) for probe in (0, 1) for row in each]
    for row in report["stages"]:
        assert row["spread"] > 5 * report["uniform_spread"]  # the limit is far from both sides
        assert sum(row["histogram"]) == row["tokens"]


def test_pictures_that_are_cut(cli: Any, bundle: BundleOf) -> None:
    outcome = cli("check", bundle("onevision", max_images=2), "--scores", "--probes", 1)
    assert outcome.code == 0, outcome.err
    assert "pass: 2 rankings" in outcome.out


@pytest.fixture(scope="module")
def wrong_axis(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose scores average over the axis that the softmax has summed to 1, in both stages."""

    def over_rows(
        query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None = None, bias: None = None
    ) -> torch.Tensor:
        hidden = None if mask is None else mask.transpose(-1, -2)
        return attention_map(key, query, hidden).transpose(-1, -2)

    folder = tmp_path_factory.mktemp("wrong") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("star_export.graphs.towers.encoder.attention_map", over_rows)
        patch.setattr("star_export.graphs.scores.attention_map", over_rows)
        build(BuildOptions(model=str(checkpoint("gqa")), output=folder, max_text_tokens=64, max_new_tokens=4))
    return folder


def test_scores_over_the_wrong_axis_fail(cli: Any, wrong_axis: Path) -> None:
    outcome = cli("check", wrong_axis, "--scores")
    assert outcome.code == 1
    for stage, source in ((1, "graphs/towers/encoder.py"), (2, "graphs/scores.py")):
        [line] = [line for line in outcome.out.splitlines() if line.startswith(f"stage {stage}: ")]
        assert "its scores are uniform" in line
        assert line.endswith(source)
    assert "FAIL: 4 rankings" in outcome.out


def test_how_uniform_the_wrong_axis_is(cli: Any, wrong_axis: Path) -> None:
    """Stage 2 to rounding errors. Stage 1 only nearly: CLS, no row of the mean, has its part of the 1."""
    outcome = cli("check", wrong_axis, "--scores", "--json")
    assert outcome.code == 1
    stages = json.loads(outcome.out)["stages"]
    assert [stage["passed"] for stage in stages] == [False] * 4
    spreads = {number: max(s["spread"] for s in stages if s["stage"] == number) for number in (1, 2)}
    assert spreads[2] < 1e-5 < 1e-3 < spreads[1] < 0.05


NOT_WITH_SCORES = ("--model", "--max-new-tokens", "--junit", "--backend", "--plugin-library", "--polygraphy")
NOT_WITH_POLYGRAPHY = ("--model", "--max-new-tokens", "--backend")


@pytest.mark.parametrize(
    ("mode", "option"),
    [("--scores", option) for option in NOT_WITH_SCORES]
    + [("--polygraphy", option) for option in NOT_WITH_POLYGRAPHY],
)
def test_options_without_meaning(cli: Any, tmp_path: Path, mode: str, option: str) -> None:
    given = (option,) if option == "--polygraphy" else (option, "1")
    refused(cli("check", tmp_path, mode, *given), f"{option} has no meaning with {mode}")


@pytest.mark.parametrize("mode", [(), ("--scores",), ("--polygraphy",)])
def test_pictures_are_given_or_built_in(cli: Any, tmp_path: Path, mode: tuple[str, ...]) -> None:
    refused(cli("check", tmp_path, *mode, "--image", "x", "--probes", 3), "--probes counts the built-in")
    refused(cli("check", tmp_path, *mode, "--prompt", "Where?"), "--prompt goes with --image")


@pytest.mark.parametrize("junit", ["none/parity.xml", "."])
def test_a_report_that_cannot_be_written(cli: Any, tmp_path: Path, junit: str) -> None:
    refused(cli("check", tmp_path, "--junit", tmp_path / junit), "cannot be written: give a file in a folder")


def test_bundles_without_scores(cli: Any, bundle: BundleOf) -> None:
    refused(cli("check", bundle("mha", prune=False), "--scores"), "built with --no-prune: it ranks no tokens")
    refused(cli("check", bundle("mha", dtype="bfloat16"), "--scores"), "is bfloat16")
