"""``star-export triton``."""

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.output import err, print_json

EPILOG = """
**Examples**

`star-export triton llava-7b -o model_repository --serve`

`star-export triton llava-7b -o model_repository --serve -- --http-port=9000 --grpc-port=9001`

`star-export triton llava-7b-rtx -o model_repository --kv-cache 16384 --max-slots 64 --overwrite`
"""


@app.command(epilog=EPILOG)
def triton(
    folder: opt.BundleArgument,
    output: opt.RepositoryOption,
    server_options: opt.ServerOptionsArgument = None,
    backend: opt.ServeBackendOption = None,
    kv_cache: opt.KVCacheOption = 4096,
    max_slots: opt.MaxSlotsOption = 32,
    queue: opt.QueueOption = 64,
    timeout: opt.ServeTimeoutOption = 120.0,
    feature_cache: opt.FeatureCacheOption = 256,
    prefix_cache: opt.PrefixCacheOption = 256,
    plugin_library: opt.PluginLibraryOption = None,
    threads: opt.ThreadsOption = None,
    verify: opt.VerifyOption = False,
    overwrite: opt.OverwriteRepositoryOption = False,
    serve: opt.ServeOption = False,
    json: opt.JsonOption = False,
) -> None:
    """Write a model repository for Triton Inference Server, and serve it if asked."""
    from star_export.bundle import open_bundle
    from star_export.engines.backends import Runtime, default_backend
    from star_export.serving.triton.repository import ServeOptions, server_command, write_repository

    bundle = open_bundle(folder, verify=verify)
    backend = backend or default_backend(bundle)
    options = ServeOptions(
        runtime=Runtime(backend=backend, threads=threads, plugin_library=plugin_library),
        kv_cache_mib=kv_cache,
        max_slots=max_slots,
        queue=queue,
        timeout_s=timeout,
        feature_cache_mib=feature_cache,
        prefix_cache_mib=prefix_cache,
    )
    write_repository(bundle, output, options, overwrite=overwrite)
    if json:
        print_json({"repository": str(output), "backend": backend, "command": server_command(output)})
    if serve:
        from star_export.serving.triton.tritonserver import serve as run_server

        run_server(output, server_options or ())
    elif not json:
        err.print(f"{output}: {folder} on {backend}\nnext: {server_command(output)}", soft_wrap=True)
