"""Errors a user can act on.

Every message says what was expected, what was found and what to do, in the words of the
Python API. The CLI prints it on one line, with its flags in the place of options, and exits
with :data:`EXIT_COULD_NOT_RUN`.
"""

import errno
import re
from collections.abc import Callable

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_COULD_NOT_RUN = 2
EXIT_BAD_ROWS = 3
EXIT_INTERRUPTED = 130

#: What the system says where there is no room: no space, no quota, file too large.
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)

# Noncharacters, which Unicode keeps for use inside a program, around an option's name: what stands
# around them, such as a file's name, is never searched for options.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_OPTION = re.compile(f"{_BEGIN}(.*?){_END}")


def option(name: str, value: object = None) -> str:
    """An option in an error's text, marked so that the CLI can put its flag there.

    Args:
        name: A parameter or field of the Python API; the constant that it is, never a user's text.
        value: What it is or should be set to.

    Returns:
        What reads ``keep``, ``keep=64`` or ``prune=False``, on the command line ``--keep``,
        ``--keep 64`` or ``--no-prune``.
    """
    if value is None:
        return f"{_BEGIN}{name}{_END}"
    if isinstance(value, bool):
        return f"{_BEGIN}{name}={value}{_END}"
    return f"{_BEGIN}{name}={_END}{value}"


def spelled(marked: str, spell: Callable[[str], str] = str) -> str:
    """A text with its marked options, ``keep``, ``keep=`` or ``prune=False``, as ``spell`` has them."""
    return _OPTION.sub(lambda match: spell(match[1]), marked)


def options_in(marked: str) -> list[str]:
    """The names of the options that a text marks, in their order."""
    return [name.partition("=")[0] for name in _OPTION.findall(marked)]


def counted(count: int, thing: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def marked(error: Exception) -> str:
    """The message of an error; of ours with its options marked."""
    return error.marked if isinstance(error, StarExportError) else str(error)


class StarExportError(Exception):
    """Base of all errors that come from input, files or the environment.

    Attributes:
        marked: The message with its options marked, for :func:`spelled` and for messages around it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(spelled(message))
        self.marked = message


class CheckpointError(StarExportError):
    """The source checkpoint is missing, damaged or of an unsupported kind."""


class SettingsError(StarExportError):
    """An option is out of range, alone or together with the model."""


class BundleError(StarExportError):
    """The bundle folder is missing, damaged, unsafe or of another version."""


class InputError(StarExportError):
    """An image or a prompt cannot be used with this bundle."""


class PlatformError(StarExportError):
    """Something this machine lacks: a package, a backend, disk space, network."""


class UnreachableError(PlatformError):
    """Another machine's server does not answer, or went away; it may come back."""


class BusyError(StarExportError):
    """The queue is full, or the server is going down; the same request may succeed later."""


class NonFiniteError(StarExportError):
    """The model's logits are NaN or infinite, so that there is no next token."""


class DeadlineError(StarExportError):
    """A request took longer than it may."""


class DeviceError(StarExportError):
    """The GPU is lost to this process: whatever uses it fails until the process is started again."""
