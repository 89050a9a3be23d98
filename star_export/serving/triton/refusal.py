"""Errors as Triton hands them out.

Triton 2.51 forgets the code of an error between two models. So ``star_llava`` writes it into the
text where ``star_llava_infer`` asked, which sends on what it reads there.
"""

import json
import logging
from typing import Any

import triton_python_backend_utils as pb  # only inside Triton

from star_export.serving.failure import Failure

log = logging.getLogger("star_export.serving")

#: Triton's code of each; it has none for what took too long.
CODES = {
    Failure.INVALID: "INVALID_ARG",
    Failure.BUSY: "UNAVAILABLE",
    Failure.LATE: "CANCELLED",
    Failure.CANCELLED: "CANCELLED",
    Failure.INTERNAL: "INTERNAL",
}


def refuse(sender: Any, error: Exception, *, forwarded: bool = False) -> None:
    """End a request with an error.

    Args:
        sender: Of the request's responses.
        error: What went wrong.
        forwarded: Whether ``star_llava_infer`` asked.
    """
    name, text = CODES[Failure.of(error)], str(error) or repr(error)
    _send(sender, name, json.dumps([name, text]) if forwarded else text)


def pass_on(sender: Any, message: str) -> None:
    """End a request with the error of a forwarded one."""
    try:
        name, text = json.loads(message)
    except ValueError:  # Triton's own words
        name, text = "INTERNAL", message
    _send(sender, name, text)


def _send(sender: Any, name: str, text: str) -> None:
    error = pb.TritonError(text, getattr(pb.TritonError, name))
    try:
        sender.send(pb.InferenceResponse(error=error), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception:  # the client has gone, perhaps
        log.exception("an error could not be sent: %s", text)
