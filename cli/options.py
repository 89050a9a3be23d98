"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A bundle made by `star-export build`.")]
BackendOption = Annotated[str, typer.Option("--backend", help="What runs the graphs: onnxruntime.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; all cores by default.")
]
