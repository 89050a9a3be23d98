"""Errors a user can act on.

Every message says what was expected, what was found and what to do. The CLI
prints it on one line and exits with :data:`EXIT_COULD_NOT_RUN`.
"""

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_COULD_NOT_RUN = 2
EXIT_INTERRUPTED = 130


class StarExportError(Exception):
    """Base of all errors that come from input, files or the environment."""


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


class BusyError(StarExportError):
    """The queue is full, or the server is going down; the same request may succeed later."""


class NonFiniteError(StarExportError):
    """The model's logits are NaN or infinite, so that there is no next token."""


class DeadlineError(StarExportError):
    """A request took longer than it may."""


class DeviceError(StarExportError):
    """The GPU is lost to this process: whatever uses it fails until the process is started again."""
