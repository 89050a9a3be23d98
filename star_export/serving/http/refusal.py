"""Errors as OpenAI's API hands them out: a status, and JSON that its clients raise an exception from."""

import logging
from collections.abc import Mapping
from typing import Any

from star_export.errors import (
    DeviceError,
    InputError,
    SettingsError,
    StarExportError,
    marked,
    options_in,
    spelled,
)
from star_export.serving.failure import Failure

log = logging.getLogger("star_export.requests")

#: Seconds after which a client may try again where everything was taken: about one answer.
RETRY_AFTER = 1

#: Characters of a message, which may repeat some of a request, at most.
MAX_MESSAGE = 800

INVALID, SERVER = "invalid_request_error", "server_error"

#: Status, type and code of each; nginx's 499 is for who has gone, and is seen by nobody but the log.
STATUSES: dict[Failure, tuple[int, str, str | None]] = {
    Failure.INVALID: (400, INVALID, None),
    Failure.BUSY: (429, "rate_limit_error", "rate_limit_exceeded"),
    Failure.LATE: (504, SERVER, "timeout"),
    Failure.CANCELLED: (499, INVALID, "cancelled"),
    Failure.UNREACHABLE: (503, SERVER, "upstream_unreachable"),
    Failure.INTERNAL: (500, SERVER, None),
}


class ApiError(Exception):
    """Why a request is not answered, in the API's terms.

    Args:
        status: Of HTTP.
        message: What was expected, what was found and what to do.
        type: The API's name of the kind of error.
        param: The field that is wrong.
        code: A name for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,  # noqa: A002 (the API's word)
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(_short(message))
        self.status, self.type, self.param, self.code = status, type, param and _short(param), code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that clients read."""
        error = {"message": str(self), "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """When to try again, where that may help."""
        return {"Retry-After": str(RETRY_AFTER)} if self.status in (429, 503) else {}


def _short(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."


def invalid(message: str, param: str | None = None) -> ApiError:
    """A request that cannot be answered as it is."""
    return ApiError(400, message, param=param)


def refusal(error: Exception, *, sent: Mapping[str, str] | None = None, closing: bool = False) -> ApiError:
    """What a client is told of an error of the service.

    Args:
        error: What went wrong.
        sent: The fields of the request, by the names that options have in errors.
        closing: Whether the server lets nobody in any more.
    """
    if isinstance(error, ApiError):
        return error
    failure = Failure.of(error)
    status, kind, code = STATUSES[failure]
    if failure is Failure.BUSY and closing:
        status, kind, code = 503, SERVER, "shutting_down"
    if isinstance(error, DeviceError):
        status, code = 503, "device_lost"
    param, text = None, marked(error) or repr(error)
    if failure is Failure.INTERNAL and not isinstance(error, StarExportError):
        log.error("a request failed", exc_info=error)
        text = "the server failed; its log says why"  # a library's words may tell of this machine
    if isinstance(error, SettingsError | InputError) and sent is not None:
        param, text = _named(text, sent)
    return ApiError(status, spelled(text), type=kind, param=param, code=code)


def _named(text: str, sent: Mapping[str, str]) -> tuple[str, str]:
    """The field that a message is about, ``messages`` if it names none, and the message with its name."""
    name = next((name for name in options_in(text) if name in sent), None)
    if name is None:
        return ("timeout_s" if text.startswith("timeout_s") else "messages"), text
    return sent[name], spelled(text).replace(name, sent[name], 1)
