"""Options of ``star-export serve`` alone."""

from pathlib import Path
from typing import Annotated

import typer

BundlesArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="DIR...", help="Bundles made by `star-export build`.")
]
UpstreamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--upstream",
        metavar="URL",
        help="gRPC port of a Triton server that runs star_llava, such as grpc://HOST:8001; "
        "repeat for more.  Needs star-export[client].",
    ),
]
NamesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="What clients call a model; once for each.  [default: its folder's name, or star_llava]",
    ),
]
HostOption = Annotated[
    str,
    typer.Option("--host", metavar="ADDRESS", help="Where to listen: 0.0.0.0 lets other machines connect."),
]
PortOption = Annotated[
    int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen at; 0 takes a free one.")
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar="STAR_EXPORT_API_KEY",
        help="What clients must send.  Others see it in the list of processes, if not in the variable.",
    ),
]
CorsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin", metavar="ORIGIN", help="Site whose pages may ask from a browser; repeat for more."
    ),
]
RemoteImagesOption = Annotated[
    bool,
    typer.Option("--allow-remote-images", metavar="", help="Fetch pictures from public web addresses."),
]
MaxBodyOption = Annotated[
    int, typer.Option("--max-body", min=1, metavar="MIB", help="Size of a request, at most.")
]
MaxConnectionsOption = Annotated[
    int, typer.Option("--max-connections", min=1, metavar="N", help="Connections at once, at most.")
]
ReceiveTimeoutOption = Annotated[
    float,
    typer.Option(
        "--receive-timeout",
        min=0.001,
        metavar="SECONDS",
        help="Seconds that a client may take to send a request, and to take each piece of an answer.",
    ),
]
LogPromptsOption = Annotated[
    bool, typer.Option("--log-prompts", metavar="", help="Write what was asked into the log.")
]
