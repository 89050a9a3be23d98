"""The Python bindings of TensorRT and of TensorRT-RTX, which share one API."""

import importlib
import logging
from dataclasses import dataclass, field
from typing import Any

from star_export.errors import PlatformError

TENSORRT, TENSORRT_RTX = BACKENDS = ("tensorrt", "tensorrt-rtx")

#: Oldest version whose API the code uses: ONNX opset 24 and in-place KV updates came with it.
OLDEST = {TENSORRT: (10, 16), TENSORRT_RTX: (1, 7)}
EXTRA = {TENSORRT: "tensorrt", TENSORRT_RTX: "rtx"}

log = logging.getLogger("star_export.tensorrt")


@dataclass(frozen=True)
class Message:
    """One line that TensorRT said, with its `logging` level."""

    level: int
    text: str


@dataclass(frozen=True)
class Bindings:
    """One installed TensorRT.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        trt: Its module. Untyped: two modules of one shape, of which CI has one.
        logger: Passes everything TensorRT says to `logging`; give it to every TensorRT object.
        messages: What it said so far, oldest first.
    """

    backend: str
    trt: Any
    logger: Any = field(repr=False)
    messages: list[Message] = field(repr=False)

    @property
    def version(self) -> str:
        """Version of the library, such as ``1.7.1.116``."""
        return str(self.trt.__version__)

    @property
    def is_rtx(self) -> bool:
        """TensorRT-RTX: builds without a GPU for named targets, and knows no plugins."""
        return self.backend == TENSORRT_RTX


def load_bindings(backend: str) -> Bindings:
    """Import one TensorRT.

    Raises:
        PlatformError: If it is not installed, broken, or too old.
    """
    install = f"pip install 'star-export[{EXTRA[backend]}]'"
    try:
        trt = importlib.import_module(backend.replace("-", "_"))
    except ImportError as error:
        raise PlatformError(f"backend {backend} is not installed ({error}); run: {install}") from error
    oldest = OLDEST[backend]
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < oldest:
        wanted = ".".join(str(part) for part in oldest)
        raise PlatformError(f"{backend} {trt.__version__} is too old, {wanted} is needed; run: {install}")
    messages: list[Message] = []
    return Bindings(backend, trt, _make_logger(trt, messages), messages)


def first_error(bindings: Bindings, since: int = 0) -> str:
    """The first error that TensorRT logged after its first ``since`` messages; others follow from it."""
    found = errors(bindings, since)
    return " ".join(found[0].split()) if found else "it gave no reason"


def errors(bindings: Bindings, since: int = 0) -> list[str]:
    """The errors that TensorRT logged after its first ``since`` messages."""
    return [message.text for message in bindings.messages[since:] if message.level >= logging.ERROR]


def _make_logger(trt: Any, messages: list[Message]) -> Any:
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.INFO,
        trt.ILogger.VERBOSE: logging.DEBUG,
    }

    class _Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            level = levels[severity]
            if level > logging.DEBUG:  # verbose lines run to gigabytes on a real model
                messages.append(Message(level, text))
            log.log(level, "%s", text)

    return _Logger()
