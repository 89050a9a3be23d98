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
        agreement: Of a kept set: the share of its tokens that the checkpoint's own weights keep
            in float32 too. None for other stages.
    """

    stage: str
    status: Status
    error: float
    tolerance: float
    detail: str
    agreement: float | None = None


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
        backend: What ran the graphs.
        reference: The checkpoint it was compared with.
        dtype: Whose tolerances were enforced.
        cases: Every picture at every budget.
        versions: Versions of both sides.
        nonfinite: Where inf or NaN first came up; None when every value was finite. A hidden
            one is a warning: it does not fail the check.
    """

    bundle: str
    backend: str
    reference: str
    dtype: str
    cases: tuple[CaseReport, ...]
    versions: dict[str, str] = field(default_factory=dict)
    nonfinite: NonFinite | None = None

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
                if stage.agreement is not None:
                    summary += f"; agreement with float32 {stage.agreement:.4f}"
                if stage.status == "fail":
                    ElementTree.SubElement(test, "failure", message=summary)
                else:
                    ElementTree.SubElement(test, "system-out").text = f"{stage.status}: {summary}"
        if self.nonfinite:
            suite = ElementTree.SubElement(
                root, "testsuite", name="values", tests="1", failures=str(int(not self.nonfinite.hidden))
            )
            test = ElementTree.SubElement(suite, "testcase", classname="values", name="finite")
            if self.nonfinite.hidden:
                ElementTree.SubElement(test, "system-out").text = str(self.nonfinite)
            else:
                ElementTree.SubElement(test, "failure", message=str(self.nonfinite))
        ElementTree.indent(root)
        return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
