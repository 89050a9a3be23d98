"""Options of ``star-export batch`` alone."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def parse_column(text: str) -> tuple[str, str]:
    """``image=path``: the field ``image`` is in the column ``path``."""
    field, equals, name = text.partition("=")
    if not (field and equals and name):
        raise typer.BadParameter(f"{text!r} is no FIELD=NAME, such as image=path")
    return field, name


InputOption = Annotated[
    Path,
    typer.Option(
        "--input", "-i", metavar="FILE", help="Rows: .jsonl, .jsonl.gz or .parquet; see docs/batch.md."
    ),
]
JobOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the answers, new or of this job.")
]
ColumnsOption = Annotated[
    list[Any] | None,  # list[tuple[str, str]], which typer takes for two arguments
    typer.Option(
        "--column",
        metavar="FIELD=NAME",
        parser=parse_column,
        help="The input's own name of a column, such as image=path; repeat for more.",
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--images", metavar="DIR", help="What paths are relative to.  [default: the input's folder]"
    ),
]
DefaultPromptOption = Annotated[
    str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The question of rows that have none.")
]
DefaultTemperatureOption = Annotated[
    float | None, typer.Option("--temperature", metavar="X", help="Of rows that have none; 0 is greedy.")
]
DefaultTopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p", metavar="X", help="Sample from the most likely tokens that have this probability."
    ),
]
RowLimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Rows to answer.  [default: all]")
]
FormatOption = Annotated[
    Literal["jsonl", "parquet"] | None,
    typer.Option("--format", metavar="TYPE", help="jsonl or parquet.  [default: the input's]"),
]
RowsPerPartOption = Annotated[
    int, typer.Option("--rows-per-part", min=1, metavar="N", help="Rows of each file of answers.")
]
RemoteImagesOption = Annotated[
    bool,
    typer.Option("--allow-remote-images", metavar="", help="Fetch pictures from public web addresses."),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Answer on a Ray cluster: its address, auto, or local for this machine.",
    ),
]
CoresOption = Annotated[
    int,
    typer.Option(
        "--cores-per-replica",
        min=1,
        metavar="N",
        help="CPU cores of each replica on Ray; on GPUs each has one.",
    ),
]
