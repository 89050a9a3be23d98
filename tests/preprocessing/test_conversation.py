"""Conversations render as transformers renders the same messages; what is no conversation is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers import AutoProcessor

from star_export.answer.pipeline import load
from star_export.errors import InputError
from star_export.preprocessing import PromptSpec, render
from star_export.preprocessing.conversation import IMAGE, Turn, read_conversation
from tests.preprocessing.test_templates import HUB, TEMPLATES, spec_of, theirs

Messages = list[dict[str, Any]]

FIRST, SAID, AGAIN, SAID_AGAIN, LAST = (
    " What is it? ",
    "A 'dog' & <b>a {cat}</b>.",
    "Wo?\n",
    "\tDort: 犬",
    "Why?",
)
IMAGE_PART = {"type": "image"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def turns(*contents: Any) -> Messages:
    """User and assistant by turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


#: What is asked, with the same in the two forms that templates take.
ASKED: dict[str, tuple[Messages, Messages, Messages]] = {
    "one question": (
        turns(FIRST),
        turns([IMAGE_PART, text(FIRST)]),
        turns(f"<image>\n{FIRST}"),
    ),
    "three questions": (
        turns(FIRST, SAID, AGAIN, SAID_AGAIN, LAST),
        turns([IMAGE_PART, text(FIRST)], [text(SAID)], [text(AGAIN)], [text(SAID_AGAIN)], [text(LAST)]),
        turns(f"<image>\n{FIRST}", SAID, AGAIN, SAID_AGAIN, LAST),
    ),
    "the picture comes later": (
        turns("Hi!", "Hello.", [IMAGE_PART, text(LAST)]),
        turns([text("Hi!")], [text("Hello.")], [IMAGE_PART, text(LAST)]),
        turns("Hi!", "Hello.", f"<image>\n{LAST}"),
    ),
    "the picture between texts": (
        turns([text(FIRST), IMAGE_PART, text(LAST)]),
        turns([text(FIRST), IMAGE_PART, text(LAST)]),
        turns(f"{FIRST}<image>\n{LAST}"),
    ),
    "a system turn": (
        [{"role": "system", "content": "Be brief."}, *turns(FIRST, SAID, LAST)],
        [
            {"role": "system", "content": [text("Be brief.")]},
            *turns([IMAGE_PART, text(FIRST)], [text(SAID)], [text(LAST)]),
        ],
        [{"role": "system", "content": "Be brief."}, *turns(f"<image>\n{FIRST}", SAID, LAST)],
    ),
}


def ours(asked: Messages, spec: PromptSpec) -> str | None:
    """What we render; None where we refuse."""
    try:
        return render(asked, spec)
    except InputError:
        return None


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("style", [*TEMPLATES, "hub"])
def test_turns_render_as_in_transformers(style: str, asked: str) -> None:
    given, *forms = ASKED[asked]
    template = TEMPLATES.get(style, HUB)
    contents: tuple[Literal["parts", "string"], ...] = ("parts", "string")
    for content, messages in zip(contents, forms, strict=True):
        assert ours(given, replace(spec_of(template), content=content)) == theirs(template, messages)


@pytest.mark.parametrize("asked", ["one question", "three questions", "a system turn"])
def test_without_a_template_turns_are_written_as_the_hubs_llava_writes_them(asked: str) -> None:
    given, parts, _ = ASKED[asked]
    found = render(given, replace(spec_of(""), chat_template=None))
    assert found == theirs(HUB, parts)
    assert found.endswith(f"USER: {LAST} ASSISTANT:") == (asked != "one question")


def test_a_conversation_equals_the_processors(
    checkpoint: Callable[[str], Path], bundle: Callable[..., Path], picture: Path
) -> None:
    given, parts, _ = ASKED["three questions"]
    processor = AutoProcessor.from_pretrained(checkpoint("gqa"))
    expected = processor.apply_chat_template(parts, add_generation_prompt=True)
    pipeline = load(bundle("gqa"), threads=1)
    assert render(given, pipeline.prompt_spec) == expected
    tokens = pipeline.tokenize(given, pipeline.prepare(picture))
    after = pipeline.tokenizer.decode(tokens.input_ids[0, tokens.query_positions[0]])
    assert all(said.strip() in after for said in (FIRST, SAID, AGAIN, SAID_AGAIN, LAST))


def test_an_answer_to_a_conversation(bundle: Callable[..., Path], picture: Path) -> None:
    pipeline = load(bundle("mha"), threads=1)
    alone, within = (
        pipeline.generate(picture, prompt, max_new_tokens=4).result()
        for prompt in (LAST, turns(FIRST, SAID, LAST))
    )
    assert within.prompt_tokens > alone.prompt_tokens
    assert within.stage2_indices != alone.stage2_indices  # what was said before asks too
    (same,) = {
        pipeline.generate(picture, prompt, max_new_tokens=4).result().token_ids
        for prompt in (LAST, turns(LAST), [Turn("user", (LAST,))], [Turn("user", (IMAGE, LAST))])
    }
    assert same == alone.token_ids


def test_a_question_is_a_conversation_of_one_turn() -> None:
    expected = (Turn("user", (IMAGE, "What?")),)
    assert read_conversation("What?", "<image>") == expected
    assert read_conversation(turns("What?"), "<image>") == expected
    assert read_conversation([Turn("user", ("What?",))], "<image>") == expected


@pytest.mark.parametrize(
    "content", ["<image>\nWhat?", [text("<image>\nWhat?")], [IMAGE_PART, text("What?")]], ids=str
)
def test_the_place_of_the_picture_is_kept_where_it_is_given(content: Any) -> None:
    spec = replace(spec_of(""), chat_template=None)
    assert render(turns("Hi!", "Hello.", content), spec) == (
        "USER: Hi! ASSISTANT: Hello. USER: <image>\nWhat? ASSISTANT:"
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "must end with the user's turn"),
        ([Turn("system", ("Be brief.",))], "must end with the user's turn"),
        (turns("Hi!", "Hello."), "must end with the user's turn, which the model answers"),
        (turns("Hi!", "Hello.", " \n"), "the prompt is empty"),
        (turns([]), "the prompt is empty"),
        (turns("Hi!", "Hello \ud800.", "What?"), "not valid Unicode"),
        ([*turns("Hi!"), *turns("What?")], "turn 2 .* is the user's, expected the assistant's"),
        (turns("Hi!")[::-1] * 2, "turn 2 .* is the user's, expected the assistant's"),
        (
            [*turns("a", "b"), Turn("system", ("Be brief.",)), *turns("c")],
            "turn 3 .* is the system's, expected the user's; the system's may come first",
        ),
        ([Turn("system", ("a",)), Turn("system", ("b",))], "turn 2 .* is the system's, expected the user's"),
        ([{"role": "tool", "content": "a"}], "turn 1 .* cannot be read: role: invalid enum value 'tool'"),
        ([*turns("a", "b"), {"role": "user"}], "turn 3 .* missing required field content"),
        ([{"role": "user", "content": 1}], "turn 1 .* content: expected str"),
        ([{"role": "user", "content": "a", "name": "b"}], "name: unknown to this version"),
        (turns([{"type": "video"}]), "found 'video'; .* videos are not supported"),
        (turns([{"type": "image", "url": "a.png"}]), "url: unknown .* pictures are given beside"),
        (turns([{"type": "image_url"}]), "invalid value 'image_url'"),
        (turns([{"type": "text"}]), "missing required field text"),
        (["a"], "turn 1 .* expected object, got str"),
        ({"role": "user", "content": "a"}, "must be a text or a list of turns, got dict"),
        (None, "must be a text or a list of turns, got NoneType"),
    ],
)
def test_what_is_no_conversation(prompt: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        render(prompt, replace(spec_of(""), chat_template=None))
