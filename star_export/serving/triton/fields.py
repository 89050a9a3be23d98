"""Inputs and outputs of the ``star_llava`` model: names, types, what they mean.

The one place that holds them: the model's configuration is written from here, the model and the
clients read them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from star_export.errors import InputError
from star_export.serving import query
from star_export.serving.options import ServiceOptions
from star_export.typed import parse

MODEL, UNARY_MODEL = "star_llava", "star_llava_infer"

#: Parameter by which the second, and other front doors, ask the first for errors to pass on: ``forwarding``.
FORWARDED = "star_forwarded"
#: Parameters that no user means for the model.
TRITONS_OWN = (FORWARDED, "id", "binary_data_output", "triton_enable_empty_final_response")


@dataclass(frozen=True)
class Field:
    """One input or output: its name, Triton's type, its length (-1 for any) and whether it may be absent."""

    name: str
    kind: str
    length: int = 1
    optional: bool = False


INPUTS = (
    Field("image", "STRING", length=-1),
    Field("prompt", "STRING", optional=True),
    Field("messages", "STRING", optional=True),
    Field("keep", "INT32", length=-1, optional=True),
    Field("max_new_tokens", "INT32", optional=True),
    Field("temperature", "FP32", optional=True),
    Field("top_p", "FP32", optional=True),
    Field("seed", "INT64", optional=True),
    Field("stop", "STRING", length=-1, optional=True),
    Field("reprune", "BOOL", optional=True),
    Field("schema", "STRING", optional=True),
    Field("top_logprobs", "INT32", optional=True),
    Field("stream", "BOOL", optional=True),
    Field("show", "BOOL", optional=True),
    Field("timeout_s", "FP32", optional=True),
)
#: ``text`` and ``token_ids`` come with every response, ``logprobs`` too where ``top_logprobs`` asks for them,
#: the others with the last, ``shown`` where ``show`` asks for it. All from ``usage`` on are JSON.
OUTPUTS = (
    Field("text", "STRING"),
    Field("token_ids", "INT32", length=-1),
    Field("finish_reason", "STRING", optional=True),
    Field("usage", "STRING", optional=True),
    Field("timings_ms", "STRING", optional=True),
    Field("logprobs", "STRING", optional=True),
    Field("shown", "STRING", optional=True),
)


def check_names(names: Iterable[str]) -> None:
    """Refuse fields that are no inputs, which Triton hands on as parameters.

    Raises:
        InputError: With the field and what it may have been meant to be.
    """
    known = [field.name for field in INPUTS]
    query.check_names((name for name in names if name not in TRITONS_OWN), known)


def scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Inputs as Python values, one element for the whole where there is only one.

    ``messages``, a conversation as JSON, becomes the prompt.

    Raises:
        InputError: If a text is not UTF-8, or the messages are no JSON list or beside a prompt.
    """
    plain: dict[str, Any] = {}
    for field in INPUTS:
        if field.name not in values:
            continue
        items = tuple(values[field.name].ravel().tolist())  # plain numbers, not NumPy's
        if field.kind == "STRING" and field.name != "image":
            items = tuple(_decoded(item, field.name) for item in items)
        plain[field.name] = items if field.length < 0 else items[0]
    if len(plain.get("keep", ())) == 1:  # of the last stage; several are of every one
        (plain["keep"],) = plain["keep"]
    if "messages" in plain:
        if "prompt" in plain:
            raise InputError("prompt and messages are both given; give one of them")
        plain["prompt"] = _messages(plain.pop("messages"))
    return plain


def service_options(parameters: Mapping[str, str]) -> ServiceOptions:
    """How much a model takes on, from its configuration's parameters.

    Raises:
        KeyError: If one is missing.
        ValueError: If one is no number.
    """
    return ServiceOptions(
        kv_cache_mib=int(parameters["kv_cache_mib"]),
        max_slots=int(parameters["max_slots"]),
        queue=int(parameters["queue"]),
        timeout_s=float(parameters["timeout_s"]),
        feature_cache_mib=int(parameters["feature_cache_mib"]),
        prefix_cache_mib=int(parameters["prefix_cache_mib"]),
    )


def _messages(text: str) -> tuple[Any, ...]:
    try:
        messages = parse(text.encode())
    except ValueError as error:
        raise InputError(f"messages must be JSON: {error}") from error
    if not isinstance(messages, list):
        raise InputError('messages must be a JSON list of {"role": ..., "content": ...}')
    return tuple(messages)


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} must be UTF-8: {error}") from error
