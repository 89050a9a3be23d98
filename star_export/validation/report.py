"""What a parity check found: one row per stage, for people, scripts and CI."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

Status = Literal["pass", "ambiguous", "fail"]


@dataclass(frozen=True)
class StageResult:
    """One stage of one case.

    Attributes:
        stage: What was compared.
        status: ``ambiguous`` = differs only where scores nearly tie; counts as a pass.
        error: The measured error, in the unit of ``tolerance``.
        tolerance: The largest error that passes.
        detail: What the numbers mean, and where the worst one is.
    """

    stage: str
    status: Status
    error: float
    tolerance: float
    detail: str


@dataclass(frozen=True)
class CaseReport:
    """All stages of one picture, prompt and budget."""

    picture: str
    prompt: str
    keep: int | None
    stages: tuple[StageResult, ...]

    @property
    def name(self) -> str:
        """A short name for tables and JUnit."""
        budget = "unpruned" if self.keep is None else f"keep {self.keep}"
        return f"{self.picture}, {budget}"


@dataclass(frozen=True)
class ParityReport:
    """A whole check.

    Attributes:
        bundle: The bundle's folder.
        reference: The checkpoint it was compared with.
        dtype: Whose tolerances were enforced.
        cases: Every picture at every budget.
        versions: Versions of both sides.
    """

    bundle: str
    reference: str
    dtype: str
    cases: tuple[CaseReport, ...]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there were cases and no stage of any failed."""
        return bool(self.cases) and all(
            stage.status != "fail" for case in self.cases for stage in case.stages
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an error that is not finite becomes null."""
        report = {"passed": self.passed, **asdict(self)}
        for case in report["cases"]:
            for stage in case["stages"]:
                if not math.isfinite(stage["error"]):
                    stage["error"] = None
        return report

    def to_junit(self) -> bytes:
        """JUnit XML: a test suite per case, a test case per stage."""
        root = ElementTree.Element("testsuites", name="star-export check")
        for case in self.cases:
            failures = sum(stage.status == "fail" for stage in case.stages)
            suite = ElementTree.SubElement(
                root, "testsuite", name=case.name, tests=str(len(case.stages)), failures=str(failures)
            )
            for stage in case.stages:
                test = ElementTree.SubElement(suite, "testcase", classname=case.name, name=stage.stage)
                summary = f"error {stage.error:.3g}, tolerance {stage.tolerance:.3g}: {stage.detail}"
                if stage.status == "fail":
                    ElementTree.SubElement(test, "failure", message=summary)
                else:
                    ElementTree.SubElement(test, "system-out").text = f"{stage.status}: {summary}"
        ElementTree.indent(root)
        return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
