"""``star-export check``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.options import refuse
from star_export.cli.output import check_target, print_json, quiet_libraries
from star_export.cli.reports import print_parity, print_runtimes, print_scores, run_check
from star_export.errors import EXIT_CHECK_FAILED

EPILOG = """
**Examples**

`star-export check llava-7b`

`star-export check llava-7b --keep 288 --keep 115 --keep 58 --keep 29 --junit parity.xml`

`star-export check llava-7b --polygraphy --junit runtimes.xml`

`star-export check llava-7b --scores`
"""

#: Options that --scores, which compares with nothing, does not read.
_PARITY_ONLY = ("model", "max_new_tokens", "junit", "backend", "plugin_library", "polygraphy")

#: Options that --polygraphy, which compares the bundle's runtimes with each other, does not read.
_PYTORCH_ONLY = ("model", "max_new_tokens", "backend")


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
    from star_export.build import require_export_extra
    from star_export.engines import Runtime
    from star_export.preprocessing import load_image
    from star_export.validation.probes import Probe

    if scores:
        refuse(context, _PARITY_ONLY, "has no meaning with --scores, which runs the graphs alone")
    if polygraphy:
        refuse(context, _PYTORCH_ONLY, "has no meaning with --polygraphy, which compares all runtimes here")
    if image:
        refuse(context, ("probes",), "counts the built-in pictures; --image takes their place")
    else:
        refuse(context, ("prompt",), "goes with --image; the built-in pictures have questions of their own")
    if junit is not None:
        check_target("--junit", junit)
    if not polygraphy:
        require_export_extra(*(("onnx",) if scores else ()))
    chosen = [Probe(path.name, (load_image(path),), prompt) for path in image or ()] or probes
    options: dict[str, Any] = {"probes": chosen, "keep": keep or ()}
    if scores:
        from star_export.show.scores import check_scores

        _finish(run_check(check_scores, folder, **options), print_scores, json=json)
        return
    options["runtime"] = Runtime(backend=backend, plugin_library=plugin_library)
    if polygraphy:
        from star_export.validation.runtimes import compare_runtimes

        _finish(run_check(compare_runtimes, folder, **options), print_runtimes, json=json, junit=junit)
        return
    from star_export.validation.check import check_bundle

    options |= {"model": model, "max_new_tokens": max_new_tokens}
    _finish(run_check(check_bundle, folder, **options), print_parity, json=json, junit=junit)


def _finish(report: Any, show: Callable[[Any], None], *, json: bool, junit: Path | None = None) -> None:
    """Write and print a report of any kind; exit code 1 unless it passed."""
    if junit is not None:
        junit.write_bytes(report.to_junit())
    if json:
        print_json(report.to_dict())
    else:
        show(report)
    if not report.passed:
        raise typer.Exit(EXIT_CHECK_FAILED)
