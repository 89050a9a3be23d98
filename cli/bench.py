"""``star-export bench``."""

from typing import TYPE_CHECKING

from rich.table import Table

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.output import err, megabytes, out, print_json, quiet_libraries
from star_export.errors import counted

if TYPE_CHECKING:
    from star_export.measure.bench import BenchReport

EPILOG = """
**Examples**

`star-export bench llava-7b --image dog.png`

`star-export bench llava-7b llava-7b-int8 llava-7b-int4 --image dog.png`

`star-export bench llava-7b --image dog.png --keep 29 --side pruned --side hf-sdpa --json`
"""


@app.command(epilog=EPILOG)
def bench(
    folders: opt.BundlesArgument,
    image: opt.ImageOption,
    prompt: opt.PromptOption = "What is in the picture?",
    model: opt.SourceOption = None,
    baseline: opt.BaselineOption = None,
    keep: opt.RunKeepOption = None,
    side: opt.SidesOption = None,
    backend: opt.BackendOption = "onnxruntime",
    plugin_library: opt.PluginLibraryOption = None,
    repeats: opt.RepeatsOption = 5,
    warmup: opt.WarmupOption = 1,
    max_new_tokens: opt.BenchNewTokensOption = 16,
    threads: opt.ThreadsOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Compare speed and memory with the unpruned bundle, other bundles and Hugging Face."""
    quiet_libraries()
    from star_export.engines import Runtime
    from star_export.measure.bench import BenchOptions
    from star_export.measure.bench import bench as run_bench
    from star_export.measure.sides import PRUNED, SIDES

    folder, *others = folders
    options = BenchOptions(
        bundle=folder,
        others=others,
        image=image,
        prompt=prompt,
        model=model,
        baseline=baseline,
        keep=keep,
        sides=tuple(side or ((PRUNED,) if others else SIDES)),
        repeats=repeats,
        warmup=warmup,
        new_tokens=max_new_tokens,
        runtime=Runtime(backend=backend, threads=threads, plugin_library=plugin_library),
    )
    with err.status("starting") as status:
        report = run_bench(options, status.update)
    if json:
        print_json(report.to_dict())
    else:
        _print_tables(report)


#: Headings of the measures.
_MEASURES = {"vision": "vision", "prefill": "prefill", "decode": "decode, per token", "ttft": "TTFT"}


def _print_tables(report: "BenchReport") -> None:
    title = (
        f"keep {report.keep:,} of {report.image_tokens:,} visual tokens, "
        f"{report.text_tokens} text tokens, {report.repeats} rounds"
    )
    table = Table("", "side", "ms", "times pruned", title=title)
    for measure, heading in _MEASURES.items():
        for index, side in enumerate(report.sides):
            median = side.median_ms[measure]
            ms = _spread(median, side.range_ms[measure], ",.1f" if median < 100 else ",.0f")
            compared = side.speedup and side.name != "pruned"
            ratio = _spread(side.speedup[measure], side.speedup_range[measure], ".2f") if compared else ""
            last = index == len(report.sides) - 1
            table.add_row("" if index else heading, side.name, ms, ratio, end_section=last)
    for index, side in enumerate(report.sides):
        peak = "unknown" if side.peak_memory is None else megabytes(side.peak_memory)
        table.add_row("" if index else "peak memory", side.name, peak)
    for side in report.sides:
        if side.device_memory is not None:
            table.add_row("GPU memory", side.name, megabytes(side.device_memory))
    out.print(table)
    out.print(f"pruned: {report.bundle}")
    if len({side.device for side in report.sides}) > 1:
        on_cpu = ", ".join(side.name for side in report.sides if side.device == "cpu")
        out.print(
            f"[yellow]{on_cpu} ran on the CPU, the others on the GPU[/yellow]: torch finds no GPU here."
        )
    out.print(
        "Times and ratios are medians of the rounds, with the extremes in brackets. A ratio is that side's "
        "time divided by the pruned bundle's in the same round: on a busy machine believe it, not a quotient "
        "of medians."
    )
    kv = dict(report.kv_bytes)
    unpruned = kv.pop("unpruned")
    out.print(
        f"KV cache after prefill: {' + '.join(f'{group} {megabytes(size)}' for group, size in kv.items())}, "
        f"unpruned {megabytes(unpruned)} ({unpruned / sum(kv.values()):.2f}x)"
    )
    pruned, full = report.flops["pruned"], report.flops["full"]
    out.print(
        f"Prefill arithmetic: {pruned.exact / 1e9:,.1f} of {full.exact / 1e9:,.1f} GFLOP "
        f"({full.exact / pruned.exact:.2f}x); FastV's formula {pruned.fastv / 1e9:,.1f} of "
        f"{full.fastv / 1e9:,.1f} GMAC ({full.fastv / pruned.fastv:.2f}x)"
    )
    out.print(
        f"Vision tower: {counted(report.tiles, 'tile')}, {report.vision_flops / 1e9:,.1f} GFLOP on every side"
    )


def _spread(median: float, extremes: tuple[float, float], form: str) -> str:
    low, high = (format(value, form) for value in extremes)
    return f"{median:{form}} ({low}-{high})"
