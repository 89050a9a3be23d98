"""``star-export compare``."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.build_options import PruneLayerOption
from star_export.cli.output import case_progress, check_target, err, print_json, quiet_libraries

if TYPE_CHECKING:
    from star_export.evaluation.comparison import Comparison

EPILOG = """
**Examples**

`star-export compare --model models/mini --task shapes -o accuracy.md`

`star-export compare --model models/mini --method spread --method balanced-text --average 64 --limit 100`

`star-export compare --model models/mini --keep 64 --keep 29 --json`

`star-export compare --model models/mini --method spread --average 64 --quantize int8 --quantize int4`

`star-export compare --model llava-1.5-7b --task pope --data playground/data/eval --method star`
"""


@app.command(epilog=EPILOG)
def compare(
    model: opt.CompareModelOption,
    task: opt.TaskOption = "shapes",
    data: opt.DataOption = None,
    split: opt.EvalSplitOption = None,
    seed: opt.TaskSeedOption = 0,
    limit: opt.CompareLimitOption = None,
    method: opt.MethodsOption = None,
    average: opt.AveragesOption = None,
    keep: opt.CompareKeepsOption = None,
    prune_layer: PruneLayerOption = None,
    dtype: opt.CompareDTypeOption = "float32",
    quantize: opt.CompareQuantizeOption = None,
    output: opt.PageOption = Path("accuracy.md"),
    answers: opt.CompareAnswersOption = None,
    resume: opt.ResumeOption = False,
    threads: opt.ThreadsOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Compare STAR with other scores and schedules, FastV, DivPrune, blind choices: accuracy, FLOPs, time.

    Writes a page of Markdown and a plot beside it.
    """
    quiet_libraries()
    from star_export.build import require_export_extra
    from star_export.evaluation.plots import require_plotting

    require_export_extra()  # before what imports it
    require_plotting()
    from star_export.engines import Runtime
    from star_export.evaluation.comparison import CompareOptions
    from star_export.evaluation.comparison import compare as run_compare

    answers = answers or output.with_suffix(".jsonl")
    check_target("--output", output)
    check_target("--answers", answers)
    options = CompareOptions(
        model=model,
        task=task,
        data=data,
        split=split,
        seed=seed,
        limit=limit,
        methods=tuple(method or ()),
        averages=tuple(average or ()),
        keep=tuple(keep or ()),
        prune_layer=prune_layer,
        dtype=dtype,
        quantize=tuple(quantize or ()),
        answers=answers,
        resume=resume,
        runtime=Runtime(threads=threads),
    )
    with err.status("starting") as status, case_progress(status) as progress:
        comparison = run_compare(options, progress, status.update)
    _write(comparison, output)
    if json:
        print_json(comparison.to_dict())
    else:
        print(output)


def _write(comparison: "Comparison", output: Path) -> None:
    """The page and its plot."""
    from star_export.evaluation.accuracy_page import to_markdown, to_png
    from star_export.files import atomic_open

    plot = output.with_suffix(".png")
    with atomic_open(plot) as file:
        file.write(to_png(comparison))
    command = shlex.join(["star-export", *(a for a in sys.argv[1:] if a != "--resume")])
    with atomic_open(output) as file:
        file.write(to_markdown(comparison, command=command, plot=plot.name).encode())
