"""Prompts of every published form, with several pictures and turns, are transformers' to the token."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.errors import CheckpointError
from star_export.preprocessing.continuing import tokens_behind_answer
from star_export.preprocessing.conversation import IMAGE, Turn, read_conversation
from star_export.preprocessing.convert import fit_content, prompt_spec
from star_export.preprocessing.derived_forms import prompt_forms
from star_export.preprocessing.processor import read_processor
from star_export.preprocessing.prompts import PromptSpec, encode, render
from star_export.testing.processors import CHAT_TEMPLATE

#: LLaVA-v1.6-34B's (Yi): pictures inside the user's turn, each on a line of its own.
YI = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for p in m.content %}{{ '<image>\n' if p.type == 'image' else p.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: A question that opens with three pictures, as each checkpoint's prompt has it.
OPENINGS = {
    "gqa": "USER: <image>\n<image>\n<image>\nWhich is red? ASSISTANT:",
    "next": "USER: <image>\n<image>\n<image>\nWhich is red? ASSISTANT:",
    "next-mistral": "[INST] <image>\n<image>\n<image>\nWhich is red? [/INST]",
    "next-llama3": "<|start_header_id|>user<|end_header_id|>\n\n<image>\n<image>\n<image>\nWhich is red?"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "yi": "<|im_start|>user\n<image>\n<image>\n<image>\nWhich is red?<|im_end|>\n<|im_start|>assistant\n",
    "interleave": "<|im_start|>user <image><image><image>\nWhich is red?<|im_end|><|im_start|>assistant\n",
    "onevision": "<|im_start|>user <image><image><image>\nWhich is red?<|im_end|><|im_start|>assistant\n",
}
ASKED = {
    "three pictures": [Turn("user", (IMAGE, IMAGE, IMAGE, "Which is red?"))],
    "pictures in two turns": [
        Turn("user", (IMAGE, "What is this?")),
        Turn("assistant", ("A dog.",)),
        Turn("user", (IMAGE, IMAGE, "And these? ")),
        Turn("assistant", ("Cats\nand more.",)),
        Turn("user", ("Which is the largest?",)),
    ],
}


@pytest.fixture(params=OPENINGS)
def published(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]
) -> tuple[str, Any, PromptSpec]:
    """A form's name, its processor, and what a build makes of that."""
    name: str = request.param
    folder = checkpoint("interleave" if name == "yi" else name)
    processor = read_processor(folder)
    if name == "yi":
        processor.chat_template = YI
    spec = prompt_spec(processor, open_checkpoint(str(folder)).model)
    tokenizer = processor.tokenizer.backend_tokenizer
    return name, processor, fit_content(spec, tokenizer, max_text_tokens=128, max_images=3)


@pytest.mark.parametrize("asked", ASKED)
def test_prompts_are_transformers(published: tuple[str, Any, PromptSpec], asked: str) -> None:
    name, processor, spec = published
    messages = [{"role": turn.role, "content": turn.parts} for turn in ASKED[asked]]
    expected = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert render(messages, spec, images=3) == expected
    if asked == "three pictures":
        assert expected == OPENINGS[name]
        assert render("Which is red?", spec, images=3) == expected
    found = encode(expected, processor.tokenizer.backend_tokenizer, spec)
    assert found == processor.tokenizer(expected)["input_ids"]
    forms = prompt_forms(spec)
    assert forms is not None
    assert forms.render(tuple(ASKED[asked])) == expected


def test_every_form_goes_on_in_the_caches(published: tuple[str, Any, PromptSpec]) -> None:
    """The appended tokens are the last ones of the whole, and the answer's end is among them once at most."""
    _, processor, spec = published
    conversation = read_conversation(ASKED["pictures in two turns"], spec.image_token, images=3)
    tokenizer = processor.tokenizer.backend_tokenizer
    whole = encode(render(conversation, spec, images=3), tokenizer, spec)
    behind = tokens_behind_answer(conversation, tokenizer, spec)
    assert behind
    assert tuple(whole[-len(behind) :]) == behind
    text = tokenizer.decode(list(behind), skip_special_tokens=False)
    assert "Which is the largest?" in text
    assert "more" not in text
    assert behind.count(processor.tokenizer.eos_token_id) <= 2  # chatml's ends the question too


def test_an_answer_whose_end_melts_into_what_follows(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("gqa")
    processor = read_processor(folder)
    spec = prompt_spec(processor, open_checkpoint(str(folder)).model)
    asked = ASKED["pictures in two turns"]
    tokenizer = processor.tokenizer.backend_tokenizer
    joined = replace(spec, chat_template=CHAT_TEMPLATE.replace("{{ part['text'] }} ", "{{ part['text'] }}"))
    melting = (*asked[:3], Turn("assistant", ("ASSIST",)), Turn("user", ("Why?",)))
    template = (joined.chat_template or "").replace("{{ message['role'] | upper }}: ", "ANT: ")
    assert tokens_behind_answer(melting, tokenizer, replace(joined, chat_template=template)) is None


def test_a_template_that_takes_one_picture_only(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("gqa")
    processor = read_processor(folder)
    template = "<image>" + CHAT_TEMPLATE.replace("<image>\n", "")
    spec = prompt_spec(processor, open_checkpoint(str(folder)).model, chat_template=template)
    tokenizer = processor.tokenizer.backend_tokenizer
    fit_content(spec, tokenizer, max_text_tokens=128)
    with pytest.raises(CheckpointError, match="has 1 <image> tokens, expected 2, one for each picture"):
        fit_content(spec, tokenizer, max_text_tokens=128, max_images=2)
