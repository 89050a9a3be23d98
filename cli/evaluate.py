"""``star-export eval``."""

from typing import TYPE_CHECKING

import typer

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.output import case_progress, check_target, err, print_json, quiet_libraries
from star_export.errors import EXIT_CHECK_FAILED

if TYPE_CHECKING:
    from star_export.evaluation.evaluate import Evaluation

EPILOG = """
**Examples**

`star-export eval llava-7b --task shapes`

`star-export eval llava-7b --task gqa --data playground/data/eval --no-baseline`

`star-export eval llava-7b --keep 288 --keep 64 --keep 29 --baseline llava-7b-unpruned --limit 200`
"""


@app.command("eval", epilog=EPILOG)
def evaluate(
    folder: opt.BundleArgument,
    task: opt.TaskOption = "shapes",
    data: opt.DataOption = None,
    split: opt.EvalSplitOption = None,
    seed: opt.TaskSeedOption = 0,
    limit: opt.LimitOption = None,
    keep: opt.KeepsOption = None,
    baseline: opt.BaselineOption = None,
    alone: opt.AloneOption = False,
    batch: opt.BatchOption = 1,
    model: opt.SourceOption = None,
    answers: opt.AnswersOption = None,
    resume: opt.ResumeOption = False,
    min_accuracy: opt.MinAccuracyOption = None,
    min_retention: opt.MinRetentionOption = None,
    backend: opt.BackendOption = "onnxruntime",
    plugin_library: opt.PluginLibraryOption = None,
    threads: opt.ThreadsOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Score a bundle's answers on a task, and what it keeps of the unpruned bundle's score.

    Exit code 0: done. 1: a score is below what `--min-...` asks for. 2: could not run.
    """
    quiet_libraries()
    from star_export.engines import Runtime
    from star_export.evaluation.evaluate import EvalOptions, evaluate_bundle

    options = EvalOptions(
        bundle=folder,
        task=task,
        data=data,
        split=split,
        seed=seed,
        limit=limit,
        keep=tuple(keep or ()),
        baseline=baseline,
        alone=alone,
        batch=batch,
        model=model,
        answers=answers,
        resume=resume,
        min_accuracy=min_accuracy,
        min_retention=min_retention,
        runtime=Runtime(backend=backend, threads=threads, plugin_library=plugin_library),
    )
    if answers is not None:
        check_target("--answers", answers)
    with err.status("starting") as status, case_progress(status) as progress:
        found = evaluate_bundle(options, progress, status.update)
    if json:
        print_json(found.to_dict())
    else:
        _print(found)
    for line in found.missed:
        err.print(f"[red]FAIL[/red]: {line}")
    if not found.passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _print(found: "Evaluation") -> None:
    if found.judge:
        for path in found.submissions.values():
            print(path)
        err.print(
            f"[dim]no score: answers to {found.questions} questions, to be scored at {found.judge}[/dim]",
            soft_wrap=True,
        )
        return
    print(found.to_markdown(), end="")
    retained = "; in brackets: share of the unpruned bundle's" if len(found.scores) > 1 else ""
    err.print(
        f"[dim]right answers in % of {found.questions} questions{retained}. "
        f"Every answer is in {found.answers}[/dim]",
        soft_wrap=True,
    )
