"""What ``star-export check`` prints on a terminal of 80 columns."""

from dataclasses import replace

import pytest
from rich.cells import cell_len

from star_export.cli import output
from star_export.cli.reports import print_parity
from star_export.validation.report import CaseReport, NonFinite, ParityReport, StageResult

STAGES = (
    *("preprocessing", "vision_features", "stage1_set", "stage2_set", "prefill_logits"),
    *("kv_cache_early", "kv_cache_late", "decode_logits", "greedy_tokens"),
)


def stage(name: str, error: float = 0.0, status: str = "pass") -> StageResult:
    agreement = 0.9876 if name.endswith("set") else None
    return StageResult(name, status, error, 2e-4, f"detail of {name}", agreement)


def case(picture: str, **changed: StageResult) -> CaseReport:
    return CaseReport(picture, "?", 64, tuple(changed.get(name, stage(name)) for name in STAGES))


def report(*cases: CaseReport) -> ParityReport:
    return ParityReport("bundles/[mha]", "onnxruntime", "checkpoints/[a]", "float16", cases)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.out, "_width", 80)


def printed(
    found: ParityReport, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Cells by stage, and the lines below the table."""
    print_parity(found)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line[:1] in "┏┡│└┃"]
    assert max(map(cell_len, table)) <= 80
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line[0] == "│"]
    return {row[0]: row[1:] for row in rows}, lines[lines.index(table[-1]) + 1 :]


def test_every_stage_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    small = case("one", prefill_logits=stage("prefill_logits", 1.23456e-6))
    rows, below = printed(report(small, case("two")), capsys)
    assert tuple(rows) == STAGES
    assert rows["stage2_set"] == ["pass", "0", "0.0002", "98.76%", "98.76%"]
    assert rows["prefill_logits"] == ["pass", "1.2e-06", "0.0002", "", ""]
    assert below == ["pass: 2 cases against checkpoints/[a]"]


def test_the_worst_case_of_what_did_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    near = stage("greedy_tokens", 1e-5, "ambiguous")
    wrong, lost = stage("kv_cache_late", 0.5, "fail"), stage("kv_cache_late", float("inf"), "fail")
    large = stage("greedy_tokens", 1e-4)  # a larger error that passes is not the worst case
    cases = (
        case("one", greedy_tokens=large),
        case("two", greedy_tokens=near, kv_cache_late=wrong),
        case("[three]", kv_cache_late=lost),
    )
    rows, below = printed(report(*cases), capsys)
    assert rows["greedy_tokens"][:2] == ["ambiguous", "1e-05"]
    assert rows["kv_cache_late"][:2] == ["fail", "inf"]
    assert below == [
        "kv_cache_late: fail in 2 of 3 cases, worst in [three], keep 64: detail of kv_cache_late",
        "greedy_tokens: ambiguous in 1 of 3 cases, worst in two, keep 64: detail of greedy_tokens",
        "FAIL: 3 cases against checkpoints/[a]",
    ]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_value_that_is_not_finite_fails(hidden: bool, capsys: pytest.CaptureFixture[str]) -> None:
    found = NonFinite("prefill", "mul_3", "Mul", "layers[1]", "build with --dtype bfloat16", hidden)
    _, below = printed(replace(report(case("one")), nonfinite=found), capsys)
    assert below == [str(found), f"{'pass' if hidden else 'FAIL'}: 1 case against checkpoints/[a]"]
