"""The command line: one module per command, no logic of its own.

Exit codes: 0 done; 1 a check ran and failed; 2 the request could not be carried
out (bad option, input, bundle or environment); 130 interrupted.
"""

import sys

from star_export.errors import EXIT_COULD_NOT_RUN, EXIT_INTERRUPTED, StarExportError


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    from star_export.cli.app import app
    from star_export.cli.interrupt import remember_interrupts

    remember_interrupts()
    try:
        app()
    except (StarExportError, OSError, MemoryError) as error:
        reason = str(error) or "not enough memory; close other programs or use a smaller model"
        print("error:", " ".join(reason.split()), file=sys.stderr)  # one line, whatever a library said
        sys.exit(EXIT_COULD_NOT_RUN)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
