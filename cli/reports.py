"""Reports of checks as a person reads them; ``build`` and ``check`` print alike."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.markup import escape
from rich.table import Table

from star_export.cli.flags import with_flags
from star_export.cli.output import err, out
from star_export.errors import counted

if TYPE_CHECKING:
    from star_export.show.scores import ScoreReport, ScoreStatistics
    from star_export.validation.report import ParityReport, StageResult
    from star_export.validation.runtimes import ComparatorReport


Report = TypeVar("Report")


def run_check(check: Callable[..., Report], folder: Path, **options: Any) -> Report:
    """Run ``check_bundle`` or one of its kin, with its options, under a spinner that counts the cases."""
    with err.status("loading") as status:
        return check(
            folder,
            progress=lambda done, total: status.update(f"case {done + 1} of {total}"),
            **options,
        )


def print_runtimes(report: "ComparatorReport") -> None:
    """One row per graph and runtime with its worst output, then the verdict."""
    table = Table(
        "graph", "runtime", "result", "error", "tolerance", "worst output", title=escape(report.bundle)
    )
    for graph, runtime in dict.fromkeys((o.graph, o.runtime) for o in report.outputs):
        rows = [o for o in report.outputs if (o.graph, o.runtime) == (graph, runtime)]
        worst = max(rows, key=lambda output: (not output.passed, output.error))
        result = _styled("pass" if worst.passed else "fail")
        error, tolerance = f"{worst.error:.2g}", f"{worst.tolerance:.2g}"
        where = f"{worst.output} of {len(rows)}" if worst.error else f"all {len(rows)} equal"
        table.add_row(graph, runtime, result, error, tolerance, where)
    out.print(table)
    for backend, reason in report.not_run.items():
        out.print(f"not run: {backend}: {escape(with_flags(reason))}", soft_wrap=True)
    cases = len({(output.picture, output.keep) for output in report.outputs})
    against = f"{counted(cases, 'case')} against Polygraphy {report.polygraphy}'s ONNX Runtime runner"
    out.print(f"{_verdict(report.passed)}: {against}", soft_wrap=True)


_STYLES = {"pass": "green", "ambiguous": "yellow", "fail": "red"}


def _styled(status: str, text: str | None = None) -> str:
    return f"[{_STYLES[status]}]{text or status}[/]"


def _verdict(passed: bool) -> str:
    return _styled("pass") if passed else _styled("fail", "FAIL")


def print_parity(report: "ParityReport") -> None:
    """One row per stage, the worst case of those that did not simply pass, then the verdict."""
    title = f"{escape(report.bundle)} ({report.dtype}, {report.backend})"
    headings = ["stage", "result", "error", "tolerance"]
    stages = dict.fromkeys(stage.stage for case in report.cases for stage in case.stages)
    shares = {name: report.agreement(name) for name in stages}
    if any(shares.values()):
        headings += ["agreement", "lowest"]
    table, notes = Table(title=title), []
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for name in stages:
        rows = [(case, stage) for case in report.cases for stage in case.stages if stage.stage == name]
        case, worst = max(rows, key=lambda row: (_RANK[row[1].status], row[1].error))
        agreement = [f"{share:.2%}" for share in shares[name] or ()]
        table.add_row(*_cells(worst), *agreement)
        if worst.status != "pass":
            alike = sum(stage.status == worst.status for _, stage in rows)
            where = f"worst in {escape(case.name)}: {escape(worst.detail)}"
            notes.append(f"{name}: {_styled(worst.status)} in {alike} of {len(rows)} cases, {where}")
    for stage in report.batches:
        table.add_row(*_cells(stage))
        if stage.status != "pass":
            notes.append(f"{stage.stage}: {_styled(stage.status)}, {escape(stage.detail)}")
    out.print(table)
    for note in notes:
        out.print(note, soft_wrap=True)
    if report.nonfinite:
        status = "ambiguous" if report.nonfinite.hidden else "fail"
        out.print(_styled(status, escape(str(report.nonfinite))), soft_wrap=True)
    against = f"{counted(len(report.cases), 'case')} against {escape(report.reference)}"
    out.print(f"{_verdict(report.passed)}: {against}", soft_wrap=True)


def _cells(stage: "StageResult") -> tuple[str, ...]:
    return stage.stage, _styled(stage.status), f"{stage.error:.2g}", f"{stage.tolerance:.2g}"


#: A stage's row shows its gravest case.
_RANK = {"pass": 0, "ambiguous": 1, "fail": 2}


def print_scores(report: "ScoreReport") -> None:
    """One row per stage and picture, then the verdict."""
    table = Table(
        "picture", "stage", "kept", title=report.bundle, box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for heading in ("min", "median", "max", "spread", "effective", "share"):
        table.add_column(heading, justify="right")
    table.add_column("1/11   mean   11", no_wrap=True)
    for stage in report.stages:
        table.add_row(
            escape(stage.picture),
            str(stage.stage),
            f"{stage.kept}/{stage.tokens}",
            *(f"{multiple:.2f}" for multiple in (stage.low, stage.median, stage.high)),
            f"[{'red' if stage.uniform else 'green'}]{stage.spread:.3f}[/]",
            f"{stage.effective_tokens:.0f}",
            f"{stage.kept_share:.0%}",
            _bars(stage),
        )
    out.print(table)
    for number in sorted({stage.stage for stage in report.stages if stage.uniform}):
        out.print(
            f"stage {number}: its scores are uniform, as when attention is averaged over the softmax's own "
            f"axis, so what it keeps is arbitrary; look at attention_map in {_ATTENTION[number > 1]}",
            soft_wrap=True,
        )
    limit = f"uniform below a spread of {report.limit:g}"
    out.print(f"{_verdict(report.passed)}: {counted(len(report.stages), 'ranking')}, {limit}")


#: Where the attention maps before the decoder and inside it are made.
_ATTENTION = ("graphs/towers/encoder.py", "graphs/scores.py")


def _bars(stage: "ScoreStatistics") -> str:
    """A histogram in one line of text; every bin with a token shows."""
    blocks, most = " ▁▂▃▄▅▆▇█", max(stage.histogram)
    return "".join(blocks[-(-count * (len(blocks) - 1) // most)] for count in stage.histogram)
