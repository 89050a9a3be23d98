"""``star-export batch``."""

from typing import TYPE_CHECKING

import typer

from star_export.cli import batch_options as opt
from star_export.cli import options as shared
from star_export.cli.app import app
from star_export.cli.output import case_progress, err, print_json
from star_export.errors import EXIT_BAD_ROWS

if TYPE_CHECKING:
    from star_export.serving.batch.batch import Summary

EPILOG = """
**Examples**

`star-export batch llava-7b --input rows.jsonl --output answers`

`star-export batch llava-7b --input photos.parquet --column prompt=question --keep 29 --output answers`

`star-export batch llava-7b --input photos.parquet --prompt "Describe it." --ray auto --output answers`
"""


@app.command(epilog=EPILOG)
def batch(
    folder: shared.BundleArgument,
    rows: opt.InputOption,
    output: opt.JobOption,
    column: opt.ColumnsOption = None,
    images: opt.FolderOption = None,
    prompt: opt.DefaultPromptOption = None,
    keep: shared.RunKeepOption = None,
    max_new_tokens: shared.RunNewTokensOption = None,
    temperature: opt.DefaultTemperatureOption = None,
    top_p: opt.DefaultTopPOption = None,
    seed: shared.SeedOption = None,
    stop: shared.StopOption = None,
    limit: opt.RowLimitOption = None,
    parts_as: opt.FormatOption = None,
    rows_per_part: opt.RowsPerPartOption = 1000,
    max_slots: shared.MaxSlotsOption = 32,
    kv_cache: shared.KVCacheOption = 4096,
    feature_cache: shared.FeatureCacheOption = 256,
    prefix_cache: shared.PrefixCacheOption = 256,
    allow_remote_images: opt.RemoteImagesOption = False,
    ray: opt.RayOption = None,
    cores_per_replica: opt.CoresOption = 4,
    backend: shared.BackendOption = "onnxruntime",
    plugin_library: shared.PluginLibraryOption = None,
    threads: shared.ThreadsOption = None,
    json: shared.JsonOption = False,
) -> None:
    """Answer every row of a data set; goes on where a killed run was.

    Exit code 0: all rows are answered. 2: could not run. 3: some rows were bad, see errors.jsonl.
    """
    from star_export.engines import Runtime
    from star_export.serving.batch.batch import run_batch
    from star_export.serving.batch.options import BatchOptions, Defaults

    numbers = {"keep": keep, "max_new_tokens": max_new_tokens, "temperature": temperature}
    defaults = Defaults(prompt=prompt, top_p=top_p, seed=seed, stop=tuple(stop) if stop else None, **numbers)
    options = BatchOptions(
        bundle=folder,
        input=rows,
        output=output,
        columns=dict(column or ()),
        images=images,
        defaults=defaults,
        format=parts_as,
        rows_per_part=rows_per_part,
        limit=limit,
        runtime=Runtime(backend=backend, threads=threads, plugin_library=plugin_library),
        max_slots=max_slots,
        kv_cache_mib=kv_cache,
        feature_cache_mib=feature_cache,
        prefix_cache_mib=prefix_cache,
        allow_remote_images=allow_remote_images,
        ray=ray,
        cores_per_replica=cores_per_replica,
    )
    with err.status("starting") as status, case_progress(status, "rows") as progress:
        done = run_batch(options, progress, status.update)
    print_json(done.to_dict()) if json else _print(done)
    if done.bad:
        err.print(f"bad rows: {done.bad}, in {done.errors}", soft_wrap=True)
        raise typer.Exit(EXIT_BAD_ROWS)


def _print(done: "Summary") -> None:
    rate = f", {done.rows_per_second:.1f} rows/s" if done.rows_per_second else ""
    before = f" ({done.resumed} before)" if done.resumed else ""
    err.print(f"{done.output}: {done.answered} of {done.rows} rows answered{before}{rate}", soft_wrap=True)
