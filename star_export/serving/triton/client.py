"""A client of ``star_llava`` over gRPC.

Not over HTTP: a body of more than about 4 MB, which one photo of a phone makes, ends tritonserver 2.51.
"""

import importlib
import json
import queue
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star_export.errors import (
    BusyError,
    DeadlineError,
    InputError,
    PlatformError,
    SettingsError,
    StarExportError,
    UnreachableError,
    option,
)
from star_export.serving.triton.fields import INPUTS, MODEL, OUTPUTS, check_names
from star_export.typed import parse

#: NumPy's and Triton's types of each kind of field.
TYPES: dict[str, tuple[Any, str]] = {
    "STRING": (np.object_, "BYTES"),
    "INT32": (np.int32, "INT32"),
    "INT64": (np.int64, "INT64"),
    "FP32": (np.float32, "FP32"),
    "BOOL": (np.bool_, "BOOL"),
}

#: Errors by gRPC's status; a server that gives another one has failed.
KINDS: dict[str, type[StarExportError]] = {
    "INVALID_ARGUMENT": InputError,
    "UNAVAILABLE": BusyError,
    "CANCELLED": DeadlineError,
    "DEADLINE_EXCEEDED": DeadlineError,
}


def stream(
    url: str,
    image: Path | Sequence[Path],
    prompt: str | Sequence[Mapping[str, Any]],
    *,
    timeout: float = 300.0,
    **inputs: Any,
) -> Iterator[dict[str, Any]]:
    """Ask a server about pictures.

    Args:
        url: Of Triton's gRPC port: ``localhost:8001``, or with ``grpc://`` before it.
        image: File of the picture, or of several.
        prompt: The question, or messages that end with it.
        timeout: Seconds to wait for each piece.
        inputs: Optional inputs of the model (`star_export.serving.triton.fields`); None is left out.

    Yields:
        Responses: ``text``, ``token_ids`` and ``logprobs`` that are new; the last has all outputs.

    Raises:
        InputError: If a picture cannot be read, or the server refuses the request.
        SettingsError: If the URL is none of gRPC, or a number does not fit its input.
        BusyError: If the queue is full or the server goes down.
        DeadlineError: If it took too long, here or there.
        PlatformError: If tritonclient is missing.
        UnreachableError: If no such server can be reached.
        StarExportError: If the server failed.
    """
    check_names(inputs)
    given = {name: value for name, value in inputs.items() if value is not None}
    images = [_read(path) for path in ([image] if isinstance(image, Path) else image)]
    values = {"image": images, **_asked(prompt), "stream": True, **given}
    grpc, address = library(), grpc_address(url)
    tensors = [tensor(grpc, name, value) for name, value in values.items()]
    updates: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with grpc.InferenceServerClient(address) as client:
        _check_server(client, url, timeout)
        # Without this header, Triton sends errors without their codes.
        client.start_stream(
            lambda result, error: updates.put(error or result), headers={"triton_grpc_error": "true"}
        )
        last = False
        try:
            client.async_stream_infer(MODEL, tensors)
            while not last:
                response = _response(updates, url, timeout)
                last = "finish_reason" in response
                yield response
        finally:
            client.stop_stream(cancel_requests=not last)


def question(prompt: str | None, messages: str | None) -> str | list[Any]:
    """What to ask, given one of two ways.

    Args:
        prompt: A question.
        messages: A conversation that ends with one: a JSON list, or the file of one.

    Raises:
        InputError: If both or neither is given, or the conversation cannot be read.
    """
    if (prompt is None) == (messages is None):
        raise InputError(f"give {option('prompt')} or {option('messages')}, one of them")
    if messages is None:
        return prompt or ""
    try:
        text = messages if messages.lstrip().startswith("[") else Path(messages).read_text(encoding="utf-8")
        found = parse(text.encode())
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {option('messages')} {messages[:80]!r}: {error}; give a JSON list or its file"
        ) from error
    if not isinstance(found, list):
        raise InputError(f"{option('messages')} must be a JSON list of messages, got {text[:40]}")
    return found


def _asked(prompt: str | Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": json.dumps(list(prompt))}


def collect(responses: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """All responses to one request as one, with its JSON parsed.

    Raises:
        UnreachableError: If the last one is missing.
    """
    whole: dict[str, Any] = {"text": "", "token_ids": []}
    logprobs: list[dict[str, Any]] = []
    last = [field.name for field in OUTPUTS if field.optional and field.name != "logprobs"]
    for response in responses:
        whole["text"] += response["text"]
        whole["token_ids"] += response["token_ids"]
        if "logprobs" in response:
            logprobs += json.loads(response["logprobs"])
            whole["logprobs"] = logprobs
        whole |= {name: response[name] for name in last if name in response}
    if "finish_reason" not in whole:
        raise UnreachableError("the answer broke off: the server went away; try again")
    for name in ("usage", "timings_ms", "shown"):
        if name in whole:
            whole[name] = json.loads(whole[name])
    return whole


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {image}: {error.strerror}; give the path of a picture") from error


def library(name: str = "tritonclient.grpc") -> Any:
    """Triton's client.

    Raises:
        PlatformError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PlatformError(
            f"Triton's client is not installed ({error}); run: pip install 'star-export[client]'"
        ) from error


def grpc_address(url: str) -> str:
    """Host and port of a URL.

    Raises:
        SettingsError: If it is none of gRPC.
    """
    address = url.removeprefix("grpc://")
    if "://" in address or not address.rpartition(":")[2].isdecimal():
        raise SettingsError(f"{url} is no address of a gRPC port; give one such as localhost:8001")
    return address


def tensor(grpc: Any, name: str, value: Any) -> Any:
    """An input of the model from one value, or from several.

    Raises:
        SettingsError: If a number does not fit.
    """
    (field,) = (field for field in INPUTS if field.name == name)
    dtype, kind = TYPES[field.kind]
    items = list(value) if isinstance(value, list | tuple) else [value]
    try:
        array = np.array([x.encode() if isinstance(x, str) else x for x in items], dtype)
    except OverflowError as error:
        raise SettingsError(f"{option(name)} must fit into {kind}, got {value}") from error
    given = grpc.InferInput(name, array.shape, kind)
    given.set_data_from_numpy(array)
    return given


def _check_server(client: Any, url: str, timeout: float) -> None:
    """Tell a server that is not there from one that is busy: gRPC has one status for both."""
    try:
        ready = client.is_model_ready(MODEL, client_timeout=timeout)
    except Exception as error:  # tritonclient's, or one of gRPC's
        raise UnreachableError(
            f"no answer from {url}: {error}; is a server there, and is this its gRPC port (8001, usually)?"
        ) from error
    if not ready:
        raise UnreachableError(f"{url} does not serve {MODEL}, or not yet; its log says why")


def _response(updates: "queue.SimpleQueue[Any]", url: str, timeout: float) -> dict[str, Any]:
    try:
        update = updates.get(timeout=timeout)
    except queue.Empty:
        raise DeadlineError(
            f"nothing came from {url} for {timeout:g} s; allow more with {option('timeout')}"
        ) from None
    if isinstance(update, Exception):
        status = str(getattr(update, "status", lambda: None)()).removeprefix("StatusCode.")
        kind, message = KINDS.get(status, StarExportError), getattr(update, "message", lambda: update)()
        raise kind(f"{url} {'says' if kind is not StarExportError else 'failed'}: {message}") from update
    return outputs(update)


def outputs(response: Any) -> dict[str, Any]:
    """The outputs that a response has, as texts and lists of numbers."""
    found = {field.name: response.as_numpy(field.name) for field in OUTPUTS}
    plain = {name: array.tolist() for name, array in found.items() if array is not None}
    return {name: ids if name == "token_ids" else ids[0].decode() for name, ids in plain.items()}
