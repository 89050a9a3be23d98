"""``star-export doctor``."""

from rich.markup import escape
from rich.table import Table

from star_export.cli.app import app
from star_export.cli.flags import flag
from star_export.cli.options import JsonOption
from star_export.cli.output import out, print_json, quiet_libraries

EPILOG = """
**Example**

`star-export doctor`
"""


@app.command(epilog=EPILOG)
def doctor(json: JsonOption = False) -> None:
    """Show what works on this machine, and the command that adds what does not."""
    quiet_libraries()
    from star_export.doctor import examine, to_dict

    parts = [part.spelled(flag) for part in examine()]
    if json:
        print_json(to_dict(parts))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    for part in parts:
        verdict = "[green]ok[/green]" if part.works else "[red]no[/red]"
        remedy = f"\n[bold]{escape(part.remedy)}[/bold]" if part.remedy else ""
        grid.add_row(verdict, escape(part.name), escape(part.found) + remedy)
    out.print(grid)
