"""``star-export tune``."""

from pathlib import Path
from typing import TYPE_CHECKING

from star_export.cli import options as opt
from star_export.cli import tune_options as own
from star_export.cli.app import app
from star_export.cli.output import case_progress, check_target, err, print_json, quiet_libraries

if TYPE_CHECKING:
    from star_export.evaluation.tuning_report import Tuning

EPILOG = """
**Examples**

`star-export tune llava-7b --data questions.jsonl`

`star-export tune llava-7b --data questions.jsonl --layers 0 --layers 14 --stage1 spread --stage1 received`

`star-export tune mini-star --task shapes --limit 100 --keep 128,14 --keep 64,14 --json`
"""


@app.command(epilog=EPILOG)
def tune(
    folder: opt.BundleArgument,
    data: own.DataOption = None,
    task: own.TaskOption = None,
    split: opt.SplitOption = "test",
    seed: opt.TaskSeedOption = 0,
    limit: opt.LimitOption = None,
    keep: own.KeepsOption = None,
    layers: own.LayersOption = None,
    stage1: own.Stage1Option = None,
    stage2: own.Stage2Option = None,
    tolerance: own.ToleranceOption = 0.01,
    baseline: opt.BaselineOption = None,
    model: opt.SourceOption = None,
    output: own.PlotOption = None,
    answers: own.AnswersOption = None,
    resume: opt.ResumeOption = False,
    threads: opt.ThreadsOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Find the smallest schedule that answers your questions as the unpruned model does.

    Tries budgets that the bundle can do as it is; with --layers, --stage1 or --stage2 it builds others
    from the source checkpoint, and removes them. Runs in ONNX Runtime.
    """
    quiet_libraries()
    from star_export.build import require_export_extra
    from star_export.evaluation.plots import require_plotting

    require_export_extra()  # before what imports it
    require_plotting()
    from star_export.engines import Runtime
    from star_export.evaluation.tuning import TuneOptions
    from star_export.evaluation.tuning import tune as run_tune
    from star_export.files import atomic_open

    output, answers = output or _beside(folder, "png"), answers or _beside(folder, "jsonl")
    check_target("--output", output)
    check_target("--answers", answers)
    options = TuneOptions(
        bundle=folder,
        data=data,
        task=task,
        split=split,
        seed=seed,
        limit=limit,
        keep=tuple(keep or ()),
        layers=tuple(layers or ()),
        stage1=tuple(stage1 or ()),
        stage2=tuple(stage2 or ()),
        tolerance=tolerance,
        model=model,
        baseline=baseline,
        answers=answers,
        resume=resume,
        runtime=Runtime(threads=threads),
    )
    with err.status("starting") as status, case_progress(status) as progress:
        found = run_tune(options, progress, status.update)
    with atomic_open(output) as file:
        file.write(found.to_png())
    if json:
        print_json(found.to_dict())
    else:
        _print(found, output)


def _beside(folder: Path, kind: str) -> Path:
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.tune.{kind}")


def _print(found: "Tuning", plot: Path) -> None:
    print(found.to_markdown())
    allowed = f"within {100 * found.tolerance:g} % of the unpruned model"
    if found.command is None:
        print(f"no schedule stays {allowed}; give --tolerance, or larger budgets with --keep")
    else:
        print(f"the smallest schedule {allowed}:\n{found.command}")
    measure = "accuracy" if found.answered else "the same answers"
    err.print(
        f"[dim]kept: {measure}, in % of the unpruned model's on {found.questions} questions. "
        f"The plot is {plot}, every answer is in {found.answers}[/dim]",
        soft_wrap=True,
    )
