"""The body of a chat completion's request, read and checked field by field."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from star_export.errors import InputError
from star_export.serving.http.messages import ImagePart, Message, check_messages, tidy, turns
from star_export.serving.http.refusal import ApiError, invalid
from star_export.serving.query import Query, check_names
from star_export.specs import Keep
from star_export.typed import convert, parse

#: Fields of the API that are not served, each with the values that ask for nothing; so does null.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

#: Clients that want JSON of a schema often ask for a tool's arguments.
HINTS = dict.fromkeys(("tools", "tool_choice"), "; JSON of a schema is had by response_format")

#: What values may be of which :func:`convert` says only that they are others, by the end of their path.
CHOICES = {
    ".role": "system, developer, user or assistant",
    ".detail": "auto, low, high or original",
    "response_format.type": "text, json_object or json_schema",
    "].type": "text or image_url",
}


class StreamOptions(Struct):
    """What a stream holds besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(Struct, tag_field="type", tag="text"):
    """An answer of any form."""


class ObjectFormat(Struct, tag_field="type", tag="json_object"):
    """An answer that is some JSON object."""


class Schema(Struct):
    """A JSON schema, always followed; what it is called changes no answer."""

    schema: dict[str, Any]
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Struct, tag_field="type", tag="json_schema"):
    """An answer that is JSON of a schema."""

    json_schema: Schema


class ChatRequest(Struct):
    """The fields that are served: those of the API, then our own."""

    messages: list[Message]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] = []
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: str | None = None  # these three name who asks, which changes no answer
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    keep: Keep | None = None
    reprune: bool = True
    timeout_s: float | None = None
    show: bool = False

    @property
    def sent(self) -> Mapping[str, str]:
        """Names of fields, by those that the service's errors have for them."""
        length = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        same = ("keep", "temperature", "top_p", "seed", "stop", "top_logprobs")
        return {"max_new_tokens": length, "schema": "response_format", **{name: name for name in same}}

    @property
    def usage_in_stream(self) -> bool:
        """Whether the last chunk of a stream is its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def schema(self) -> dict[str, Any] | None:
        """What the answer is JSON of; None where it may be anything."""
        if isinstance(self.response_format, SchemaFormat):
            return self.response_format.json_schema.schema
        return {"type": "object"} if isinstance(self.response_format, ObjectFormat) else None

    @property
    def urls(self) -> list[str]:
        """Where its pictures are, in their order."""
        parts = (part for message in self.messages for part in message.parts)
        return [part.url for part in parts if isinstance(part, ImagePart)]

    def query(self, fetch: Callable[[str], bytes]) -> Query:
        """What the service is asked.

        Args:
            fetch: Gives what :attr:`Query.image` takes for an address.
        """
        length = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return Query(
            image=tuple(map(fetch, self.urls)),
            prompt=tuple(turns(self.messages)),
            keep=self.keep,
            max_new_tokens=length,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            reprune=self.reprune,
            schema=self.schema,
            top_logprobs=self.top_logprobs if self.logprobs else None,
            timeout_s=self.timeout_s,
        )


def read_chat(body: bytes) -> ChatRequest:
    """A request's JSON.

    Raises:
        ApiError: If it is no JSON object, or a field is unknown, missing, not served or of another type.
    """
    try:
        values = parse(body)
    except ValueError as error:
        raise invalid(f"the body cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise invalid('the body must be a JSON object such as {"model": ..., "messages": [...]}')
    given = {name: value for name, value in values.items() if value is not None}
    _check_names(given)
    for name, neutral in NEUTRAL.items():
        if name in given and not _among(given.pop(name), neutral):
            raise ApiError(
                400,
                f"{name} is not served here; leave it out{_or(neutral)}{HINTS.get(name, '')}",
                param=name,
                code="unsupported_parameter",
            )
    if "messages" not in given:
        raise invalid("messages is missing; every request needs it", "messages")
    tidy(given["messages"])
    try:
        chat = convert(given, ChatRequest)
    except ValueError as error:
        param = _param(str(error))
        raise invalid(f"{error}{_choices(str(error), param or '')}", param) from error
    _check(chat)
    return chat


def _check_names(given: Mapping[str, Any]) -> None:
    for name in given:
        try:
            check_names([name], [*ChatRequest.__struct_fields__, *NEUTRAL])
        except InputError as error:
            near, _, _ = str(error).partition("; there are ")
            raise ApiError(400, near, param=name, code="unknown_parameter") from error


def _check(chat: ChatRequest) -> None:
    """Refuse what is of the right type and makes no sense."""
    check_messages(chat.messages)
    lengths = {chat.max_tokens, chat.max_completion_tokens} - {None}
    if len(lengths) > 1:
        raise invalid("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    if chat.stream_options not in (None, StreamOptions()) and not chat.stream:
        raise invalid('stream_options needs "stream": true', "stream_options")
    if chat.stream_options is not None and chat.stream_options.include_obfuscation:
        raise invalid("include_obfuscation is not served here; leave it out", "stream_options")
    if chat.top_logprobs and not chat.logprobs:
        raise invalid('top_logprobs needs "logprobs": true', "top_logprobs")
    if not chat.urls:
        raise invalid(
            "no picture is given; put one into a message's content: "
            '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}',
            "messages",
        )


def _among(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether a value is one of these; 1 is not True."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)


def _or(neutral: tuple[Any, ...]) -> str:
    return f", or give {neutral[0]!r}" if neutral else ""


def _choices(message: str, path: str) -> str:
    found = (f"; it may be {words}" for ending, words in CHOICES.items() if path.endswith(ending))
    return next(found, "") if ": invalid " in message else ""


def _param(message: str) -> str | None:
    """The path that a message of :func:`convert` begins with."""
    path, colon, _ = message.partition(": ")
    return path if colon and " " not in path else None
