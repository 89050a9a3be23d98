"""Options of ``star-export tune`` that no other command has."""

from pathlib import Path
from typing import Annotated, Any

import typer

from star_export.cli.options import parse_keep
from star_export.specs import STAGE1_SCORES, STAGE2_SCORES


def parse_layers(text: str) -> tuple[int, ...]:
    """``14``, ``12,24``, or ``0`` for none inside the decoder."""
    try:
        layers = tuple(map(int, text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no layer of the decoder, nor a list such as 12,24 of several"
        ) from error
    return () if layers == (0,) else layers


DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help='Lines of JSON, {"image": "dog.png", "question": "...", "answer": "..."}; answers may be left '
        "out, paths are relative to the file.",
    ),
]
TaskOption = Annotated[
    str | None, typer.Option("--task", metavar="NAME", help="Instead: a task, such as shapes.")
]
KeepsOption = Annotated[
    list[Any] | None,
    typer.Option(
        "--keep",
        metavar="N",
        parser=parse_keep,
        help="Budgets to try, such as 128,14 for every stage; repeat for more.  [default: halvings]",
    ),
]
LayersOption = Annotated[
    list[Any] | None,
    typer.Option(
        "--layers",
        metavar="K",
        parser=parse_layers,
        help="Build stages after layer K, or after 12,24, or for 0 none inside the decoder; repeat for more.",
    ),
]
Stage1Option = Annotated[
    list[str] | None,
    typer.Option(
        "--stage1",
        metavar="SCORE",
        help=f"Build this score before the decoder: {', '.join(STAGE1_SCORES)}; repeat for more.",
    ),
]
Stage2Option = Annotated[
    list[str] | None,
    typer.Option(
        "--stage2",
        metavar="SCORE",
        help=f"Build this score inside it: {', '.join(STAGE2_SCORES)}; repeat for more.",
    ),
]
ToleranceOption = Annotated[
    float, typer.Option("--tolerance", metavar="X", help="Share of what is kept unpruned that may be lost.")
]
PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Plot to write, a PNG.  [default: DIR.tune.png, beside it]"
    ),
]
AnswersOption = Annotated[
    Path | None,
    typer.Option(
        "--answers",
        metavar="FILE",
        help="Every answer, a line of JSON each.  [default: DIR.tune.jsonl, beside the bundle]",
    ),
]
