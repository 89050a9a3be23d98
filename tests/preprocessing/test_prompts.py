"""Prompts become exactly the tokens that transformers' processor gives, with the right places."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor

from star_export.errors import InputError
from star_export.preprocessing import PromptSpec, TokenizedPrompt, render, tokenize
from star_export.preprocessing.prompts import has_bos, rust_panics
from star_export.testing.processors import CHAT_TEMPLATE

PROMPTS = ["What is in the picture?", "Zwei Wörter, {braces} & 'quotes' 犬 🐕", " spaces \n\n and lines "]
IMAGE_ID = 4

PLAIN = PromptSpec(
    image_token="<image>", image_token_id=IMAGE_ID, chat_template=None, special_tokens={"bos_token": "<s>"}
)


@pytest.fixture(scope="module", params=["mha", "gqa"])
def preset(request: pytest.FixtureRequest) -> str:
    """``mha`` has no chat template, ``gqa`` has one."""
    return str(request.param)


@pytest.fixture(scope="module")
def processor(preset: str, checkpoint: Callable[[str], Path]) -> Any:
    return AutoProcessor.from_pretrained(checkpoint(preset))


@pytest.fixture(scope="module")
def spec(preset: str, bundle: Callable[..., Path]) -> PromptSpec:
    parameters = json.loads((bundle(preset) / "preprocessor.json").read_text())
    return PromptSpec(**parameters["prompt"])


@pytest.fixture(scope="module")
def tokenizer(bundle: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.from_file(str(bundle("mha") / "tokenizer.json"))


def with_template(template: str) -> PromptSpec:
    return replace(PLAIN, chat_template=template)


def token_ids(text: str, tokenizer: Tokenizer) -> TokenizedPrompt:
    return tokenize(text, tokenizer, PLAIN, tokens_per_image=10)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_render_without_chat_template(prompt: str) -> None:
    assert render(prompt, PLAIN) == f"USER: <image>\n{prompt} ASSISTANT:"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_render_equals_transformers(
    checkpoint: Callable[[str], Path], bundle: Callable[..., Path], prompt: str
) -> None:
    parameters = json.loads((bundle("gqa") / "preprocessor.json").read_text())["prompt"]
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    expected = AutoProcessor.from_pretrained(checkpoint("gqa")).apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert render(prompt, PromptSpec(**parameters)) == expected


def test_content_as_one_string_begins_with_the_image() -> None:
    spec = replace(with_template("{{ messages[0].content }}"), content="string")
    assert render("What is it?", spec) == "<image>\nWhat is it?"


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
@pytest.mark.parametrize("prompt", ["<image>", "say <image> what {{ 1 + 1 }}", "<image> and <image>"])
def test_prompt_with_an_image_token_is_taken_as_it_is(template: str | None, prompt: str) -> None:
    assert render(prompt, replace(PLAIN, chat_template=template)) == prompt


def test_prompt_is_data_for_the_template() -> None:
    prompt = "{{ 1 + 1 }} {% raise %}"
    assert render(prompt, with_template("<image>{{ messages[0].content[1].text }}")) == f"<image>{prompt}"


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_empty_prompt(prompt: str) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        render(prompt, PLAIN)


def test_template_that_writes_bos_itself(tokenizer: Tokenizer) -> None:
    spec = with_template("{{ bos_token }}<image>{% if tools is not none %}tools{% endif %} What?")
    tokens = tokenize(render("hello", spec), tokenizer, spec, tokens_per_image=2)
    assert tokens.input_ids[0, :3].tolist() == [tokenizer.token_to_id("<s>"), IMAGE_ID, IMAGE_ID]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("<s><image> one?", [1, IMAGE_ID]),  # BOS is there already
        ("<image> one <s> two?", [1, IMAGE_ID]),  # not where it counts
        (" <s><image> one?", [1]),
    ],
)
def test_bos_is_added_unless_the_text_begins_with_it(
    tokenizer: Tokenizer, text: str, first: list[int]
) -> None:
    ids = token_ids(text, tokenizer).input_ids[0].tolist()
    assert ids[: len(first)] == first
    assert ids.count(1) == text.count("<s>") + (not text.startswith("<s>"))


def test_a_model_without_bos_gets_none(tokenizer: Tokenizer) -> None:
    assert not has_bos("<s> one", replace(PLAIN, special_tokens={}))


@pytest.mark.parametrize("prompt", [*PROMPTS, "before <image> after"])
def test_tokens_equal_transformers(
    processor: Any, spec: PromptSpec, tokenizer: Tokenizer, prompt: str
) -> None:
    text = render(prompt, spec)
    ours = tokenize(text, tokenizer, spec, tokens_per_image=576)
    theirs = processor(images=Image.new("RGB", (50, 50)), text=text, return_tensors="np")["input_ids"]
    assert ours.input_ids.dtype == np.int64
    assert np.array_equal(ours.input_ids, theirs)
    assert np.array_equal(ours.image_positions[0], np.flatnonzero(theirs[0] == IMAGE_ID))


def test_positions(tokenizer: Tokenizer) -> None:
    tokens = token_ids("USER: <image>\nWhat? ASSISTANT:", tokenizer)
    ids = tokens.input_ids[0]
    before, after = tokenizer.encode("USER: ").ids, tokenizer.encode("\nWhat? ASSISTANT:").ids[1:]
    assert ids.tolist() == [*before, *[IMAGE_ID] * 10, *after]
    assert ids[0] == 1  # <s>, once
    assert tokens.image_positions.tolist() == [list(range(len(before), len(before) + 10))]
    assert tokens.query_positions.tolist() == [list(range(len(before) + 10, len(ids)))]
    assert tokens.text_tokens == len(before) + len(after)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<image> one <image> two", "holds 2 <image> tokens; this bundle takes exactly one image"),
        ("no picture", "holds 0 <image> tokens"),
        ("What is this? <image>", "no text follows <image>; STAR scores the picture by the text after it"),
    ],
)
def test_prompts_that_cannot_be_used(tokenizer: Tokenizer, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        token_ids(text, tokenizer)


def test_one_token_after_the_image_is_enough(tokenizer: Tokenizer) -> None:
    assert token_ids("<image>?", tokenizer).query_positions.tolist() == [[11]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_only_panics_become_another_error(error: type[BaseException]) -> None:
    with pytest.raises(error), rust_panics():
        raise error
