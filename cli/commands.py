"""The application with all of its commands, in the order of ``--help``."""

from star_export.cli import (
    bench,  # noqa: F401
    build,  # noqa: F401
    chat,  # noqa: F401
    check,  # noqa: F401
    client,  # noqa: F401
    compare,  # noqa: F401
    doctor,  # noqa: F401
    evaluate,  # noqa: F401
    inspect,  # noqa: F401
    plan,  # noqa: F401
    run,  # noqa: F401
    serve,  # noqa: F401
    show,  # noqa: F401
    triton,  # noqa: F401
    tune,  # noqa: F401
)
from star_export.cli.app import app

__all__ = ["app"]
