"""Parity reports as JSON and as JUnit XML."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from star_export.validation.report import CaseReport, NonFinite, ParityReport, StageResult, Status


def stage(name: str, status: Status, detail: str = "max |difference| / rms") -> StageResult:
    return StageResult(name, status, 0.5 if status == "fail" else 1e-6, 2e-4, detail)


GOOD = CaseReport("probe 0", "What?", 64, (stage("a", "pass"), stage("b", "ambiguous"), stage("c", "pass")))
BAD = CaseReport("probe 1", "Who?", None, (stage("a", "pass"), stage("b", "fail"), stage("c", "fail")))


def test_agreement_of_a_stage() -> None:
    kept = [
        replace(GOOD, stages=(replace(stage("s", "pass"), agreement=a), BAD.stages[0])) for a in (1.0, 0.5)
    ]
    assert report(*kept).agreement("s") == (0.75, 0.5)
    assert report(*kept).agreement("a") is None
    texts = [out.text for out in ElementTree.fromstring(report(*kept).to_junit()).iter("system-out")]
    assert [text.partition("; ")[2] for text in texts] == [
        "agreement with float32 1.0000", "", "agreement with float32 0.5000", "",
    ]  # fmt: skip


@pytest.mark.parametrize("hidden", [False, True])
def test_where_inf_or_nan_came_up(hidden: bool) -> None:
    found = NonFinite("prefill", "mul_3", "Mul", "layers.1.mlp", "build with --dtype bfloat16", hidden)
    written = replace(report(GOOD), nonfinite=found)
    assert json.loads(json.dumps(written.to_dict()))["nonfinite"]["tensor"] == "mul_3"
    root = ElementTree.fromstring(written.to_junit())
    messages = [f.get("message") for f in root.iter("failure")]
    texts = [out.text for out in root.iter("system-out")]
    assert "first in mul_3 (Mul in layers.1.mlp); build with --dtype" in (texts if hidden else messages)[-1]
    assert len(messages) == (not hidden)


def report(*cases: CaseReport) -> ParityReport:
    return ParityReport("bundle", "onnxruntime", "checkpoint", "float32", cases, {"torch": "2.9"})


NONFINITE = [None, *(NonFinite("prefill", "mul_3", "Mul", "lm_head", "", hidden) for hidden in (False, True))]


@pytest.mark.parametrize("nonfinite", NONFINITE)
@pytest.mark.parametrize("cases", [[], [GOOD], [GOOD, GOOD], [BAD], [GOOD, BAD], [BAD, GOOD]])
def test_one_verdict_everywhere(cases: list[CaseReport], nonfinite: NonFinite | None) -> None:
    """Passed, as JSON and JUnit say alike: something was compared, and nothing failed."""
    written = replace(report(*cases), nonfinite=nonfinite)
    passed = bool(cases) and BAD not in cases and (nonfinite is None or nonfinite.hidden)
    assert written.passed is written.to_dict()["passed"] is passed
    root = ElementTree.fromstring(written.to_junit())
    assert passed is (root.find(".//failure") is None)
    assert passed is (sum(int(suite.get("failures", 0)) for suite in root.iter("testsuite")) == 0)


def test_case_names() -> None:
    assert (GOOD.name, BAD.name) == ("probe 0, keep 64", "probe 1, unpruned")


def test_json_round_trip() -> None:
    together = StageResult("decode_batch_2", "fail", 0.5, 0.1, "row 1")
    written = replace(report(GOOD), batches=(together,))
    data = json.loads(json.dumps(written.to_dict()))
    assert data.pop("passed") is False  # for that alone
    batches = tuple(StageResult(**stage) for stage in data.pop("batches"))
    cases = tuple(
        CaseReport(**{**case, "stages": tuple(StageResult(**s) for s in case["stages"])})
        for case in data.pop("cases")
    )
    assert ParityReport(**data, cases=cases, batches=batches) == written


def test_junit_counts_failures() -> None:
    root = ElementTree.fromstring(report(GOOD, BAD).to_junit())
    suites = root.findall("testsuite")
    assert root.tag == "testsuites"
    assert [suite.attrib for suite in suites] == [
        {"name": "probe 0, keep 64", "tests": "3", "failures": "0", "skipped": "0"},
        {"name": "probe 1, unpruned", "tests": "3", "failures": "2", "skipped": "0"},
    ]
    assert [len(suite.findall("testcase")) for suite in suites] == [3, 3]
    assert [len(suite.findall("testcase/failure")) for suite in suites] == [0, 2]
    failed = [test.get("name") for test in root.iter("testcase") if test.find("failure") is not None]
    assert failed == ["b", "c"]


def test_junit_says_what_was_measured() -> None:
    root = ElementTree.fromstring(report(GOOD, BAD).to_junit())
    assert [out.text for out in root.iter("system-out")][:2] == [
        "pass: error 1e-06, tolerance 0.0002: max |difference| / rms",
        "ambiguous: error 1e-06, tolerance 0.0002: max |difference| / rms",
    ]
    assert [f.get("message") for f in root.iter("failure")] == [
        "error 0.5, tolerance 0.0002: max |difference| / rms"
    ] * 2


def test_junit_is_well_formed_whatever_the_names_hold() -> None:
    odd = "<&>\"' é 图 \U0001f415"
    raw = f"{odd}\x1b\udcff"  # a control character and a byte that was no UTF-8, as file names have them
    odd += "\ufffd\ufffd"
    case = replace(BAD, picture=raw, stages=(stage(raw, "fail", raw), stage("b", "pass", raw)))
    content = report(case).to_junit()
    root = ElementTree.fromstring(content)
    assert content.startswith(b"<?xml version='1.0' encoding='utf-8'?>")
    assert root.find("testsuite").get("name") == f"{odd}, unpruned"
    assert root.find("testsuite/testcase").get("name") == odd
    assert root.find("testsuite/testcase/failure").get("message").endswith(odd)


def test_junit_of_a_result_without_a_number() -> None:
    endless = replace(stage("a", "fail"), error=float("inf"))
    root = ElementTree.fromstring(report(replace(BAD, stages=(endless,))).to_junit())
    assert next(root.iter("failure")).get("message").startswith("error inf, tolerance 0.0002")
