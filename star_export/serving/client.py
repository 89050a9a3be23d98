"""A client of ``generate_stream`` that needs nothing but Python."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star_export.errors import InputError, PlatformError, StarExportError
from star_export.serving.fields import MODEL, OUTPUTS


def stream(
    url: str, image: Path, prompt: str, *, timeout: float = 300.0, **inputs: Any
) -> Iterator[dict[str, Any]]:
    """Ask a server about a picture.

    Args:
        url: Of Triton's HTTP port: ``localhost:8000``.
        image: File of the picture.
        prompt: The question.
        timeout: Seconds to wait for each piece.
        inputs: Optional inputs of the model, see :data:`star_export.serving.fields.INPUTS`; None is left out.

    Yields:
        Responses: ``text`` and ``token_ids`` that are new; the last has all outputs.

    Raises:
        InputError: If the picture cannot be read, or the server refuses the request.
        PlatformError: If the server cannot be reached, is busy or goes away.
    """
    try:
        data = image.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {image}: {error.strerror}; give the path of a picture") from error
    given = {name: value for name, value in inputs.items() if value is not None}
    body = {"image": base64.b64encode(data).decode(), "prompt": prompt, "stream": True, **given}
    address = f"{url if '://' in url else f'http://{url}'}/v2/models/{MODEL}/generate_stream"
    try:
        request = urllib.request.Request(address, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=timeout) as response:
            for line in response:
                if line.startswith(b"data: "):
                    yield _response(json.loads(line.removeprefix(b"data: ")), url)
    except urllib.error.HTTPError as error:
        raise _refused(_message(error), url) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise PlatformError(f"no answer from {url}: {reason}; is a server there, and is it ready?") from error


def collect(responses: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """All responses to one request as one, with ``usage`` and ``timings_ms`` parsed.

    Raises:
        PlatformError: If the last one is missing.
    """
    whole: dict[str, Any] = {"text": "", "token_ids": []}
    for response in responses:
        whole["text"] += response["text"]
        whole["token_ids"] += response["token_ids"]
        whole |= {f.name: response[f.name] for f in OUTPUTS if f.optional and f.name in response}
    if "finish_reason" not in whole:
        raise PlatformError("the answer broke off: the server went away; try again")
    for name in ("usage", "timings_ms"):
        whole[name] = json.loads(whole[name])
    return whole


def _response(found: dict[str, Any], url: str) -> dict[str, Any]:
    if "error" in found:
        raise _refused(found["error"], url)
    ids = found["token_ids"]  # one element comes without its list
    return {**found, "token_ids": ids if isinstance(ids, list) else [ids]}


def _message(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text or str(error)


def _refused(message: str, url: str) -> StarExportError:
    """Busy servers are another kind of error than bad requests."""
    kind = PlatformError if "try again" in message else InputError
    return kind(f"{url} says: {message}")
