"""The command line: one module per command, no logic of its own.

Exit codes: 0 done; 1 a check ran and failed; 2 the request could not be carried
out (bad option, input, bundle or environment); 3 some rows of a data set were bad; 130 interrupted.
"""

import contextlib
import logging
import os
import sys

from star_export.cli.flags import with_flags
from star_export.cli.interrupt import remember_interrupts, was_swallowed
from star_export.errors import EXIT_CHECK_FAILED, EXIT_COULD_NOT_RUN, EXIT_INTERRUPTED, FULL, StarExportError


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    try:
        remember_interrupts()
        from star_export.cli.commands import app  # takes a while, in which Ctrl-C may come too

        try:
            app()
        finally:
            sys.stdout.flush()  # a reader that left is noticed here, not when Python ends
    except BaseException as error:
        sys.exit(_exit_code(error))


def _exit_code(error: BaseException) -> int:
    """Exit code for what ended a command; says on stderr what went wrong.

    1 is for a check that failed, and for nothing else: CI reads it as "does not match".
    """
    if isinstance(error, SystemExit):
        cause = KeyboardInterrupt() if error.code == EXIT_INTERRUPTED else _cause(error)
        if cause is None:
            return int(error.code or 0)
        error = cause
    if isinstance(error, KeyboardInterrupt) or was_swallowed(error):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):  # `| head` has read enough
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return EXIT_COULD_NOT_RUN
    if isinstance(error, StarExportError):
        reason = with_flags(error) or type(error).__name__
    elif isinstance(error, OSError):
        reason = _system_error(error)
    elif isinstance(error, MemoryError):
        reason = str(error) or "not enough memory; close other programs or use a smaller model"
    else:
        reason = (
            f"unexpected {type(error).__name__}: {error}; this is a fault of star-export: please report it "
            "with the traceback, which `star-export -v COMMAND ...` shows"
        )
    if not isinstance(error, StarExportError):
        logging.getLogger("star_export").info("the traceback:", exc_info=error)  # shown by --verbose
    print("error:", " ".join(reason.split()), file=sys.stderr)  # one line, whatever a library said
    return EXIT_COULD_NOT_RUN


def _system_error(error: OSError) -> str:
    """What the system refused and where, without the number that Python puts in front."""
    where = f"{error.filename}: " if error.filename else ""
    remedy = "; free space and give the command again" if error.errno in FULL else ""
    return f"{where}{error.strerror}{remedy}" if error.strerror else str(error) or type(error).__name__


def _cause(stop: SystemExit) -> BaseException | None:
    """What Typer and Rich end with exit code 1 though no check failed; None for any other end."""
    from typer import Abort, Exit

    cause = stop.__context__
    if stop.code != EXIT_CHECK_FAILED or cause is None or isinstance(cause, Exit):
        return None
    return cause.__cause__ or cause if isinstance(cause, Abort) else cause
