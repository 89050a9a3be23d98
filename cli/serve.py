"""``star-export serve``."""

from functools import partial
from typing import TYPE_CHECKING

from star_export.cli import options as opt
from star_export.cli import serve_options as own
from star_export.cli.app import app
from star_export.cli.output import err, print_json, show_requests

if TYPE_CHECKING:
    from star_export.serving.http.models import Models

EPILOG = """
**Examples**

`star-export serve llava-7b`

`star-export serve llava-7b onevision --port 9000 --max-slots 64`

`star-export serve --upstream grpc://triton.example:8001 --name llava-7b`

`STAR_EXPORT_API_KEY=... star-export serve llava-7b --host 0.0.0.0 --cors-origin https://example.com`
"""


@app.command(epilog=EPILOG)
def serve(
    folder: own.BundlesArgument = None,
    upstream: own.UpstreamOption = None,
    name: own.NamesOption = None,
    host: own.HostOption = "127.0.0.1",
    port: own.PortOption = 8000,
    api_key: own.ApiKeyOption = None,
    cors_origin: own.CorsOption = None,
    allow_remote_images: own.RemoteImagesOption = False,
    max_body: own.MaxBodyOption = 32,
    max_connections: own.MaxConnectionsOption = 512,
    receive_timeout: own.ReceiveTimeoutOption = 30.0,
    log_prompts: own.LogPromptsOption = False,
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
    json: opt.JsonOption = False,
) -> None:
    """Answer OpenAI's chat completions over HTTP, with a page to try it."""
    from star_export.serving.http.models import Models
    from star_export.serving.http.options import HttpOptions
    from star_export.serving.options import ServiceOptions

    http = HttpOptions(
        host=host,
        port=port,
        api_key=api_key,
        cors_origins=tuple(cors_origin or ()),
        allow_remote_images=allow_remote_images,
        max_body_mib=max_body,
        max_connections=max_connections,
        receive_timeout_s=receive_timeout,
        log_prompts=log_prompts,
    )
    service = ServiceOptions(
        kv_cache_mib=kv_cache,
        max_slots=max_slots,
        queue=queue,
        timeout_s=timeout,
        feature_cache_mib=feature_cache,
        prefix_cache_mib=prefix_cache,
    )
    models = Models(
        folders=tuple(folder or ()),
        upstreams=tuple(upstream or ()),
        names=tuple(name or ()),
        backend=backend,
        threads=threads,
        plugin_library=plugin_library,
        verify=verify,
        options=service,
    )
    show_requests()
    models.serve(http, on_ready=partial(_say_ready, models, json))


def _say_ready(models: "Models", json: bool, address: str) -> None:
    if json:
        print_json({"address": address, "models": list(models.by_name)}, line=True)
    else:
        err.print(models.greeting(address), soft_wrap=True, markup=False)
