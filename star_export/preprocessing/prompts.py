"""Prompts to ``input_ids``, with the places of the image tokens and of the scoring rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from tokenizers import Tokenizer

from star_export.errors import InputError, SettingsError, option
from star_export.preprocessing.conversation import (
    Conversation,
    Prompt,
    Role,
    Turn,
    check_unicode,
    read_conversation,
)
from star_export.preprocessing.forms import PromptForms
from star_export.preprocessing.templates import compile_template
from star_export.specs import TokenId

#: What stands before a turn in LLaVA-1.5's prompt, for checkpoints without a chat template.
_LABELS: dict[Role, str] = {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "}


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """What a prompt looks like for one model.

    Attributes:
        image_token: Text that stands for the picture, ``<image>``.
        image_token_id: Its id in the vocabulary.
        chat_template: Jinja template of the model, or None for LLaVA-1.5's own form.
        special_tokens: Names the template may use (``bos_token``, ``eos_token``).
        content: How the template takes a message: as a list of ``parts``, or as one ``string``
            that begins with the image token.
        given_template: Whether ``chat_template`` was given to the build, instead of the checkpoint's.
        end_tokens: Tokens that end an answer, besides the model's own.
        forms: What ``chat_template`` writes around texts, for runtimes without Jinja; None if it does more.
    """

    image_token: Annotated[str, Meta(min_length=1)]
    image_token_id: TokenId
    chat_template: str | None
    special_tokens: dict[str, str]
    content: Literal["parts", "string"] = "parts"
    given_template: bool = False
    end_tokens: tuple[str, ...] = ()
    forms: PromptForms | None = None  # absent before format 3

    def message(self, turn: Turn) -> dict[str, Any]:
        """A turn as the chat template takes it."""
        if self.content == "string":
            return {"role": turn.role, "content": turn.joined(self.image_token)}
        return {"role": turn.role, "content": turn.parts}


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the prefill graph takes it.

    Attributes:
        input_ids: int64 ``[1, S]``; image places hold the image token id.
        image_positions: int64 ``[1, V]``, places of the visual tokens.
        query_positions: int64 ``[1, Q]``, text tokens after the last image; all of them without one.
    """

    input_ids: npt.NDArray[np.int64]
    image_positions: npt.NDArray[np.int64]
    query_positions: npt.NDArray[np.int64]

    @property
    def text_tokens(self) -> int:
        """Tokens that are not visual."""
        return int(self.input_ids.shape[1] - self.image_positions.shape[1])


def render(prompt: Prompt, spec: PromptSpec, *, images: int = 1) -> str:
    """Put the model's template around a question or a conversation about some pictures.

    A text that contains the image token is taken as it is.

    Raises:
        InputError: If the prompt is empty or cannot be read, or the template refuses it.
    """
    if isinstance(prompt, str) and spec.image_token in prompt:
        check_unicode(prompt)
        return prompt
    return render_conversation(read_conversation(prompt, spec.image_token, images=images), spec)


def render_conversation(
    conversation: Conversation, spec: PromptSpec, *, add_generation_prompt: bool = True
) -> str:
    """A conversation as the model's template writes it, or LLaVA-1.5's if there is none.

    Args:
        conversation: Its turns.
        spec: The model's prompt parameters.
        add_generation_prompt: Whether the model's answer follows.

    Raises:
        InputError: If the template refuses.
    """
    if spec.chat_template is None:
        said = [f"{_LABELS[turn.role]}{turn.joined(spec.image_token)} " for turn in conversation]
        return "".join([*said, "ASSISTANT:" if add_generation_prompt else ""])
    return render_messages(
        [spec.message(turn) for turn in conversation], spec, add_generation_prompt=add_generation_prompt
    )


def render_messages(
    messages: list[dict[str, Any]], spec: PromptSpec, *, add_generation_prompt: bool = True
) -> str:
    """The model's chat template on messages; see :func:`render_conversation`.

    Raises:
        InputError: If there is no template or it refuses.
    """
    try:
        return compile_template(spec.chat_template or "").render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **spec.special_tokens,
        )
    except Exception as error:  # a template can raise whatever Python can
        raise InputError(f"the model's chat template refuses this prompt: {error}") from error


@contextmanager
def rust_panics() -> Iterator[None]:
    """Turn a panic of the tokenizers library, which is no Exception, into a RuntimeError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise RuntimeError(str(error)) from error
        raise


def has_bos(text: str, spec: PromptSpec) -> bool:
    """Whether a rendered prompt begins with BOS itself, so that the tokenizer must not add one."""
    bos = spec.special_tokens.get("bos_token")
    return bos is not None and text.startswith(bos)


def encode(text: str, tokenizer: Tokenizer, spec: PromptSpec) -> list[int]:
    """Token ids of a rendered prompt, with BOS before them if the model has one.

    Raises:
        InputError: If the tokenizer fails.
    """
    try:
        with rust_panics():
            return tokenizer.encode(text, add_special_tokens=not has_bos(text, spec)).ids
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"the bundle's tokenizer cannot encode this prompt: {error}") from error


def tokenize(
    text: str, tokenizer: Tokenizer, spec: PromptSpec, *, tokens_per_image: Sequence[int]
) -> TokenizedPrompt:
    """Token ids of a rendered prompt, each image token repeated for every visual token of its picture.

    Args:
        text: The rendered prompt with one image token for each picture.
        tokenizer: The model's tokenizer.
        spec: The model's prompt parameters.
        tokens_per_image: Visual tokens that the vision graph gives, of each picture.

    Raises:
        InputError: If there are more image tokens than pictures or fewer, or no text follows the last.
    """
    prompt = np.array(encode(text, tokenizer, spec), dtype=np.int64)
    places = prompt == spec.image_token_id
    if places.sum() != len(tokens_per_image):
        raise InputError(
            f"the prompt has {places.sum()} {spec.image_token} tokens, expected {len(tokens_per_image)}, "
            "one for each picture"
        )
    repeats = np.ones_like(prompt)
    repeats[places] = tokens_per_image
    expanded = np.repeat(prompt, repeats)
    visual = np.flatnonzero(expanded == spec.image_token_id)
    asking = np.arange(visual[-1] + 1 if len(visual) else 0, len(expanded))
    if not len(asking):
        raise InputError(
            f"no text follows {spec.image_token}; STAR scores the pictures by the text after the last one, "
            "so put the question there"
        )
    return TokenizedPrompt(expanded[None], visual[None], asking[None])


def end_token_ids(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of tokens that end an answer, such as ``<|eot_id|>``.

    Raises:
        SettingsError: If a text is not exactly one token.
    """
    found = []
    for text in texts:
        token = tokenizer.token_to_id(text)
        if token is None:
            count = len(tokenizer.encode(text, add_special_tokens=False).ids)
            raise SettingsError(
                f"{option('end_tokens', repr(text))} is no token of this model, "
                f"which reads it as {count} tokens; give one that its tokenizer.json lists, "
                f"or end answers with {option('stop')}"
            )
        found.append(token)
    return tuple(found)
