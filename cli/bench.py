"""``star-export bench``."""

from typing import TYPE_CHECKING

from rich.table import Table

from star_export.cli import options as opt
from star_export.cli.app import app
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
    folder: opt.BundleArgument,
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
        new_tokens=max_new_tokens,
        threads=threads,
        backend=backend,
        plugin_library=plugin_library,
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
        memory = megabytes(side.peak_memory)
        if side.device_memory is not None:
            memory += f" + {megabytes(side.device_memory)} on the GPU"
        table.add_row(side.name, *cells, memory)
    out.print(table)
    if len({side.device for side in report.sides}) > 1:
        on_cpu = ", ".join(side.name for side in report.sides if side.device == "cpu")
        out.print(
            f"[yellow]{on_cpu} ran on the CPU, the others on the GPU[/yellow]: torch finds no GPU here."
        )
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
