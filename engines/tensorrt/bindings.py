"""The Python bindings of TensorRT and of TensorRT-RTX, which share one API."""

import importlib
import logging
from dataclasses import dataclass, field
from typing import Any

from star_export.errors import PlatformError

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"

#: GPUs that TensorRT-RTX 1.7 builds for. Turing (sm75) is not among them: it has no float32
#: matrix multiplication there, which the stage scores need.
RTX_TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")


@dataclass(frozen=True, kw_only=True)
class Product:
    """What tells one TensorRT from the other.

    Attributes:
        module: Its Python module.
        extra: The extra of this package that installs it.
        oldest: Oldest version whose API the code uses: ONNX opset 24 and in-place KV updates came with it.
        targets: GPUs that it builds for without having one; empty: it builds for the one that is here.
        plugins: Where ``TopKGather`` comes from by default, ``none`` where there are no plugins.
    """

    module: str
    extra: str
    oldest: tuple[int, int]
    targets: tuple[str, ...]
    plugins: str

    @property
    def install(self) -> str:
        """What to type to have it."""
        return f"pip install 'star-export[{self.extra}]'"


#: By the name of the backend.
PRODUCTS = {
    TENSORRT: Product(module="tensorrt", extra="tensorrt", oldest=(10, 16), targets=(), plugins="aot"),
    TENSORRT_RTX: Product(
        module="tensorrt_rtx", extra="rtx", oldest=(1, 7), targets=RTX_TARGETS, plugins="none"
    ),
}

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
    product = PRODUCTS[backend]
    try:
        trt = importlib.import_module(product.module)
    except ImportError as error:
        raise PlatformError(
            f"backend {backend} is not installed ({error}); run: {product.install}"
        ) from error
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < product.oldest:
        wanted = "{}.{}".format(*product.oldest)
        raise PlatformError(
            f"{backend} {trt.__version__} is too old, {wanted} is needed; run: {product.install}"
        )
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
