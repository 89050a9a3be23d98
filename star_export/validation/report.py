"""What a parity check found: one row per stage, for people, scripts and CI."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Literal
from xml.etree import ElementTree

from star_export.specs import Keep, spelled_keep

Status = Literal["pass", "ambiguous", "fail"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, kw_only=True)
class JUnitTest:
    """One test case of a JUnit file.

    Attributes:
        suite: The suite it belongs to.
        name: Its name.
        passed: Whether it passed; None if it could not run.
        text: What was measured, or why it could not run.
    """

    suite: str
    name: str
    passed: bool | None
    text: str


def to_junit(tests: Iterable[JUnitTest]) -> bytes:
    """JUnit XML of test cases, those of a suite one after the other."""
    root = ElementTree.Element("testsuites", name="star-export check")
    for name, members in groupby(tests, key=lambda test: test.suite):
        cases = list(members)
        suite = _element(
            root,
            "testsuite",
            name=name,
            tests=str(len(cases)),
            failures=str(sum(case.passed is False for case in cases)),
            skipped=str(sum(case.passed is None for case in cases)),
        )
        for case in cases:
            test = _element(suite, "testcase", classname=name, name=case.name)
            if case.passed:
                _element(test, "system-out").text = _NOT_XML.sub("\ufffd", case.text)
            else:
                _element(test, "skipped" if case.passed is None else "failure", message=case.text)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _element(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    """A child element; what XML cannot hold, such as a file name's control character, is replaced."""
    return ElementTree.SubElement(
        parent, tag, {name: _NOT_XML.sub("\ufffd", value) for name, value in attributes.items()}
    )


def case_name(picture: str, keep: Keep | None) -> str:
    """Name of a picture at a budget, or at one for each stage; None is no pruning."""
    if keep is None:
        return f"{picture}, unpruned"
    return f"{picture}, keep {spelled_keep(keep)}"


@dataclass(frozen=True)
class StageResult:
    """One stage of one case.

    Attributes:
        stage: What was compared.
        status: ``ambiguous`` = differs only where scores nearly tie; counts as a pass.
        error: The measured error, in the unit of ``tolerance``.
        tolerance: The largest error that passes.
        detail: What the numbers mean, and where the worst one is.
        agreement: Of a kept set: the share of its tokens that the checkpoint's own weights keep
            in float32 too. None for other stages.
    """

    stage: str
    status: Status
    error: float
    tolerance: float
    detail: str
    agreement: float | None = None

    def to_test(self, suite: str) -> JUnitTest:
        """The stage as a JUnit test case."""
        text = f"error {self.error:.3g}, tolerance {self.tolerance:.3g}: {self.detail}"
        if self.agreement is not None:
            text += f"; agreement with float32 {self.agreement:.4f}"
        passed = self.status != "fail"
        text = f"{self.status}: {text}" if passed else text
        return JUnitTest(suite=suite, name=self.stage, passed=passed, text=text)


@dataclass(frozen=True)
class NonFinite:
    """The first tensor of a graph, in execution order, that holds inf or NaN.

    Attributes:
        graph: ``vision``, ``prefill`` or ``decode``.
        tensor: Its name in the graph; empty when none was found or the graph could not be run again.
        operator: Kind of the node that makes it.
        module: The checkpoint's module that the node belongs to.
        remedy: What to do.
        hidden: This backend computes in a wider type and gives finite results; a GPU will not.
    """

    graph: str
    tensor: str
    operator: str
    module: str
    remedy: str
    hidden: bool = False

    def __str__(self) -> str:
        where = f"{self.tensor} ({self.operator} in {self.module})" if self.tensor else "its outputs"
        hidden = " when every tensor is rounded, as on a GPU" if self.hidden else ""
        return f"inf or NaN in the {self.graph} graph{hidden}, first in {where}; {self.remedy}"


@dataclass(frozen=True)
class CaseReport:
    """All stages of one picture, prompt and budget."""

    picture: str
    prompt: str
    keep: Keep | None
    stages: tuple[StageResult, ...]

    @property
    def name(self) -> str:
        """A short name for tables and JUnit."""
        return case_name(self.picture, self.keep)


@dataclass(frozen=True)
class ParityReport:
    """A whole check.

    Attributes:
        bundle: The bundle's folder.
        backend: What ran the graphs.
        reference: The checkpoint it was compared with.
        dtype: Whose tolerances were enforced.
        cases: Every picture at every budget.
        versions: Versions of both sides.
        nonfinite: Where inf or NaN first came up; None when every value was finite. A hidden
            one is a warning: it does not fail the check.
        batches: Sequences decoded together, against the same ones alone; a stage for each batch size. Then
            one for each smaller size of KV caches that there are engines for, against the largest.
    """

    bundle: str
    backend: str
    reference: str
    dtype: str
    cases: tuple[CaseReport, ...]
    versions: dict[str, str] = field(default_factory=dict)
    nonfinite: NonFinite | None = None
    batches: tuple[StageResult, ...] = ()

    def agreement(self, stage: str) -> tuple[float, float] | None:
        """Mean and worst agreement of a stage over the cases; None if it has none."""
        shares = [
            found.agreement
            for case in self.cases
            for found in case.stages
            if found.stage == stage and found.agreement is not None
        ]
        return (sum(shares) / len(shares), min(shares)) if shares else None

    @property
    def passed(self) -> bool:
        """Whether there were cases, no stage of any failed, and every value was finite."""
        return all(test.passed for test in self._tests())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an error that is not finite becomes null."""
        report = {"passed": self.passed, **asdict(self)}
        for stage in (*report["batches"], *(stage for case in report["cases"] for stage in case["stages"])):
            if not math.isfinite(stage["error"]):
                stage["error"] = None
        return report

    def to_junit(self) -> bytes:
        """JUnit XML: a test suite per case, a test case per stage; one more where values were not finite."""
        return to_junit(self._tests())

    def _tests(self) -> Iterator[JUnitTest]:
        """What the verdict is made of."""
        for case in self.cases:
            yield from (stage.to_test(case.name) for stage in case.stages)
        yield from (stage.to_test("batches") for stage in self.batches)
        if not self.cases:
            yield JUnitTest(suite="cases", name="cases", passed=False, text="nothing was compared")
        if self.nonfinite:
            found = self.nonfinite
            yield JUnitTest(suite="values", name="finite", passed=found.hidden, text=str(found))
