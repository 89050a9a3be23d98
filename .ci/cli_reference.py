"""Write docs/cli.md from the commands themselves; with --check, only say whether it is current."""

import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

from star_export.cli.commands import app

TARGET = Path("docs/cli.md")
HEAD = """# Command line

Made from the commands themselves by `make docs`.

Exit codes: 0 done; 1 a check ran and failed; 2 could not run (bad option, input, bundle or
environment: one line on stderr says what was expected, what was found and what to do); 3
some rows of a data set were bad (`batch`); 130 interrupted.
"""


TABLE = "| option | default | meaning |\n|---|---|---|\n"


def reference() -> str:
    """The page: one section per command, one row per option."""
    parts = [HEAD]
    for name, command in sorted(get_command(app).commands.items()):
        parts.append(f"\n## star-export {name}\n\n{command.help.splitlines()[0]}\n\n{TABLE}")
        parts += [row(option) for option in command.params]
        examples = [line.strip("`") for line in command.epilog.splitlines() if line.startswith("`")]
        parts.append("\n```sh\n" + "\n".join(examples) + "\n```\n")
    return "".join(parts)


def row(option: Any) -> str:
    """One option or argument of a command."""
    is_option = option.param_type_name == "option"
    names = ", ".join([*option.opts, *option.secondary_opts]) if is_option else option.metavar
    default = "required" if option.required else option.default
    return f"| `{names}` | {'' if default in (None, False, ()) else default} | {option.help} |\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text() == reference() else "docs/cli.md is out of date; run: make docs")
    TARGET.write_text(reference())
