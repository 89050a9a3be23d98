"""``star-export check``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.options import refuse
from star_export.cli.output import err, out, print_json, quiet_libraries
from star_export.errors import EXIT_CHECK_FAILED

if TYPE_CHECKING:
    from star_export.validation.probes import Probe
    from star_export.validation.report import ParityReport
    from star_export.validation.scores import ScoreReport, ScoreStatistics

EPILOG = """
**Examples**

`star-export check llava-7b`

`star-export check llava-7b --keep 288 --keep 115 --keep 58 --keep 29 --junit parity.xml`

`star-export check llava-7b --polygraphy`

`star-export check llava-7b --scores`
"""

#: Options that --scores, which compares with nothing, does not read.
_PARITY_ONLY = ("model", "max_new_tokens", "junit", "backend", "plugin_library", "polygraphy")


@app.command(epilog=EPILOG)
def check(
    context: typer.Context,
    folder: opt.BundleArgument,
    model: opt.SourceOption = None,
    keep: opt.KeepsOption = None,
    image: opt.CheckImagesOption = None,
    prompt: opt.PromptOption = "What is in the picture?",
    probes: opt.ProbesOption = 2,
    max_new_tokens: opt.CheckNewTokensOption = 8,
    junit: opt.JUnitOption = None,
    backend: opt.BackendOption = "onnxruntime",
    plugin_library: opt.PluginLibraryOption = None,
    polygraphy: opt.PolygraphyOption = False,
    scores: opt.ScoresOption = False,
    json: opt.JsonOption = False,
) -> None:
    """Prove that a bundle matches PyTorch, stage by stage.

    Exit code 0: it does. 1: it does not. 2: the check could not run.
    """
    quiet_libraries()
    if scores:
        refuse(context, _PARITY_ONLY, "has no meaning with --scores, which runs the graphs alone")
    from star_export.preprocessing import load_image
    from star_export.validation.probes import Probe, make_probes

    chosen = [Probe(path.name, load_image(path), prompt) for path in image or ()] or make_probes(probes)
    if polygraphy:
        compare_with_polygraphy(folder, chosen[0], plugin_library=plugin_library, json=json)
        return
    from star_export.build import require_export_extra

    require_export_extra()
    if scores:
        show_scores(folder, chosen, keep=keep or (), json=json)
        return
    report = check_with_progress(
        folder,
        model=model,
        backend=backend,
        plugin_library=plugin_library,
        keep=keep or (),
        probes=chosen,
        max_new_tokens=max_new_tokens,
    )
    if junit is not None:
        junit.write_bytes(report.to_junit())
    if json:
        print_json(report.to_dict())
    else:
        print_table(report)
    if not report.passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


def check_with_progress(folder: Path, **options: Any) -> "ParityReport":
    """Run a check under a spinner; options are those of ``check_bundle``."""
    from star_export.validation.parity import check_bundle

    with err.status("loading both sides") as status:
        return check_bundle(
            folder,
            progress=lambda done, total: status.update(f"case {done + 1} of {total}"),
            **options,
        )


def compare_with_polygraphy(folder: Path, probe: "Probe", *, plugin_library: Path | None, json: bool) -> None:
    """Compare the runtimes on one request; one row per graph and runtime with its worst output."""
    from star_export.validation.comparator import compare_runtimes

    with err.status("comparing runtimes"):
        report = compare_runtimes(folder, probe, plugin_library=plugin_library)
    if json:
        print_json(report.to_dict())
    else:
        table = Table("graph", "runtime", "result", "outputs", "error", "tolerance", "worst output")
        for graph, runtime in dict.fromkeys((o.graph, o.runtime) for o in report.outputs):
            rows = [o for o in report.outputs if (o.graph, o.runtime) == (graph, runtime)]
            worst = max(rows, key=lambda output: (not output.passed, output.error))
            result = "[green]pass[/]" if worst.passed else "[red]fail[/]"
            error, tolerance = f"{worst.error:.2g}", f"{worst.tolerance:.2g}"
            table.add_row(graph, runtime, result, str(len(rows)), error, tolerance, worst.output)
        out.print(table)
        for backend, reason in report.not_run.items():
            out.print(f"not run: {backend}: {escape(reason)}")
        verdict = "[green]pass[/green]" if report.passed else "[red]FAIL[/red]"
        out.print(f"{verdict}: against Polygraphy {report.polygraphy}'s ONNX Runtime runner")
    if not report.passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


_STYLES = {"pass": "green", "ambiguous": "yellow", "fail": "red"}


def print_table(report: "ParityReport") -> None:
    """One row per stage with its worst case, then the verdict."""
    table = Table(
        "stage",
        "result",
        "error",
        "tolerance",
        "agreement",
        "worst case",
        title=f"{report.bundle} ({report.dtype}, {report.backend})",
    )
    stages = {stage.stage: None for case in report.cases for stage in case.stages}
    for name in stages:
        rows = [(case, stage) for case in report.cases for stage in case.stages if stage.stage == name]
        case, stage = max(rows, key=lambda row: (row[1].status == "fail", row[1].error))
        result = f"[{_STYLES[stage.status]}]{stage.status}[/]"
        if sum(row[1].status == "ambiguous" for row in rows):
            result += f" ({sum(row[1].status == 'ambiguous' for row in rows)} ambiguous)"
        shares = report.agreement(name)
        agreement = f"{shares[0]:.2%}, worst {shares[1]:.2%}" if shares else ""
        error, tolerance = f"{stage.error:.2g}", f"{stage.tolerance:.2g}"
        table.add_row(name, result, error, tolerance, agreement, f"{case.name}: {stage.detail}")
    out.print(table)
    if report.nonfinite:
        style = "yellow" if report.nonfinite.hidden else "red"
        out.print(f"[{style}]{report.nonfinite}[/]")
    verdict = "[green]pass[/green]" if report.passed else "[red]FAIL[/red]"
    out.print(f"{verdict}: {len(report.cases)} cases against {report.reference}")


def show_scores(folder: Path, probes: "list[Probe]", *, keep: Sequence[int], json: bool) -> None:
    """Print how the scores of both stages are spread; exit code 1 where they are uniform."""
    from star_export.validation.scores import check_scores

    with err.status("loading the graphs") as status:
        report = check_scores(
            folder,
            probes=probes,
            keep=keep,
            progress=lambda done, total: status.update(f"case {done + 1} of {total}"),
        )
    if json:
        print_json(report.to_dict())
    else:
        _print_scores(report)
    if not report.passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _print_scores(report: "ScoreReport") -> None:
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
            f"axis, so what it keeps is arbitrary; look at attention_map in {_ATTENTION[number]}",
            soft_wrap=True,
        )
    verdict = "[green]pass[/]" if report.passed else "[red]FAIL[/]"
    out.print(f"{verdict}: {len(report.stages)} rankings, uniform below a spread of {report.limit:g}")


#: Where the attention map of each stage is made.
_ATTENTION = {1: "graphs/vision.py", 2: "graphs/decoder.py"}


def _bars(stage: "ScoreStatistics") -> str:
    """A histogram in one line of text; every bin with a token shows."""
    blocks, most = " ▁▂▃▄▅▆▇█", max(stage.histogram)
    return "".join(blocks[-(-count * (len(blocks) - 1) // most)] for count in stage.histogram)
