"""What errors call an option, in the words of the command line."""

from star_export.errors import StarExportError, spelled

#: Options whose flag is not their name with dashes.
_FLAGS = {
    "end_tokens": "--end-token",
    "kv_cache_mib": "--kv-cache",
    "targets": "--target",
    "receive_timeout_s": "--receive-timeout",
}


def with_flags(error: StarExportError) -> str:
    """An error's message with a flag in the place of every option: the only place where they get one."""
    return spelled(error.marked, flag)


def flag(option: str) -> str:
    """The flag of ``keep``, of ``keep=`` with the value behind it, or of ``prune=False``."""
    name, equals, value = option.partition("=")
    if value == "False":
        return f"--no-{name}"
    shown = _FLAGS.get(name) or f"--{name.replace('_', '-')}"
    return shown if value or not equals else f"{shown} "
