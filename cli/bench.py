"""``star-export bench``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from star_export.cli.app import app
from star_export.cli.options import BundleArgument, JsonOption, ThreadsOption
from star_export.cli.output import err, megabytes, out, print_json, quiet_libraries

if TYPE_CHECKING:
    from star_export.validation.bench import BenchReport

EPILOG = """
**Examples**

`star-export bench llava-7b --image dog.png`

`star-export bench llava-7b --image dog.png --keep 29 --side star --side hf-sdpa --json`
"""


@app.command(epilog=EPILOG)
def bench(
    folder: BundleArgument,
    image: Annotated[Path, typer.Option("--image", "-i", help="The picture.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The question.")] = "What is in the picture?",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Where the source checkpoint is now.  [default: see manifest]")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="The --no-prune bundle; built for the time being when not given.")
    ] = None,
    keep: Annotated[int | None, typer.Option("--keep", help="Budget.  [default: the bundle's]")] = None,
    side: Annotated[
        list[str] | None, typer.Option("--side", help="star, unpruned, hf-sdpa, hf-eager; repeat.  [default: all]")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before them.")] = 1,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode in each round.")] = 16,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Compare speed and memory with the unpruned bundle and with Hugging Face."""
    quiet_libraries()
    from star_export.build import require_export_extra

    require_export_extra()
    from star_export.validation.bench import BenchOptions
    from star_export.validation.bench import bench as run_bench
    from star_export.validation.sides import SIDES

    options = BenchOptions(
        bundle=folder,
        image=image,
        prompt=prompt,
        model=model,
        baseline=baseline,
        keep=keep,
        sides=tuple(side or SIDES),
        repeats=repeats,
        warmup=warmup,
        new_tokens=new_tokens,
        threads=threads,
    )
    with err.status("starting") as status:
        report = run_bench(options, status.update)
    if json:
        print_json(report.to_dict())
    else:
        _print_tables(report)


def _print_tables(report: "BenchReport") -> None:
    title = f"keep {report.keep}, {report.text_tokens} text tokens, median of {report.repeats} rounds"
    table = Table("side", "vision ms", "prefill ms", "decode ms/token", "TTFT ms", "peak memory", title=title)
    for side in report.sides:
        cells = []
        for measure, median in side.median_ms.items():
            ratio = f" ({side.speedup[measure]:.2f}x)" if side.speedup and side.name != "star" else ""
            cells.append(f"{median:,.1f}{ratio}")
        table.add_row(side.name, *cells, megabytes(side.peak_memory))
    out.print(table)
    out.print("In brackets: that side's time divided by star's, median of the rounds.")
    kv = report.kv_bytes
    pruned, full = report.flops["pruned"], report.flops["full"]
    out.print(
        f"KV cache after prefill: early {megabytes(kv['early'])} + late {megabytes(kv['late'])}, "
        f"unpruned {megabytes(kv['unpruned'])} ({kv['unpruned'] / (kv['early'] + kv['late']):.2f}x)"
    )
    out.print(
        f"Prefill arithmetic: {pruned.exact / 1e9:,.1f} of {full.exact / 1e9:,.1f} GFLOP "
        f"({full.exact / pruned.exact:.2f}x); FastV's formula {pruned.fastv / 1e9:,.1f} of "
        f"{full.fastv / 1e9:,.1f} GMAC ({full.fastv / pruned.fastv:.2f}x)"
    )
