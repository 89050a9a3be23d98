"""The Typer application and what its commands share."""

import warnings
from typing import Annotated

import typer

import star_export
from star_export.cli.output import show_log

app = typer.Typer(
    name="star-export",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"star-export {star_export.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what TensorRT says, and tracebacks, on stderr.")
    ] = False,
) -> None:
    """Export LLaVA with STAR visual-token pruning, prove that it matches PyTorch, run it.

    Exit codes: 0 done, 1 a check failed, 2 could not run, 3 some rows were bad, 130 interrupted.
    """
    del version
    show_log(verbose=verbose)
    if not verbose:
        warnings.filterwarnings("ignore", module="PIL")  # pictures that cannot be used are errors of ours
