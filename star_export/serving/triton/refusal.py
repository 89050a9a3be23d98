"""Errors as Triton hands them out.

To who passes requests on, ``star_llava_infer`` and a front door on another machine, all of an error goes in
its text; see :mod:`star_export.serving.triton.forwarding`.
"""

import logging
from typing import Any

import triton_python_backend_utils as pb  # only inside Triton

from star_export.serving.failure import Failure
from star_export.serving.triton.forwarding import packed, unpacked

log = logging.getLogger("star_export.serving")

#: Triton's code of each; it has none for what took too long.
CODES = {
    Failure.INVALID: "INVALID_ARG",
    Failure.BUSY: "UNAVAILABLE",
    Failure.LATE: "CANCELLED",
    Failure.CANCELLED: "CANCELLED",
    Failure.UNREACHABLE: "UNAVAILABLE",
    Failure.INTERNAL: "INTERNAL",
}


def refuse(sender: Any, error: Exception, *, forwarded: bool = False) -> None:
    """End a request with an error.

    Args:
        sender: Of the request's responses.
        error: What went wrong.
        forwarded: Whether who asked passes it on.
    """
    text = packed(error) if forwarded else str(error) or repr(error)
    _send(sender, CODES[Failure.of(error)], text)


def pass_on(sender: Any, message: str) -> None:
    """End a request with the error of a forwarded one."""
    refuse(sender, unpacked(message) or RuntimeError(message))


def _send(sender: Any, name: str, text: str) -> None:
    error = pb.TritonError(text, getattr(pb.TritonError, name))
    try:
        sender.send(pb.InferenceResponse(error=error), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception:  # the client has gone, perhaps
        log.exception("an error could not be sent: %s", text)
