"""Plain text around turns gives what a chat template gives, or is not claimed to."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from star_export.preprocessing import PromptSpec
from star_export.preprocessing.conversation import IMAGE, Turn
from star_export.preprocessing.derived_forms import prompt_forms
from star_export.preprocessing.forms import PromptForms, TurnForm
from star_export.preprocessing.prompts import render_conversation
from tests.preprocessing.test_templates import HUB, TEMPLATES, spec_of

MINI = Path(__file__).parents[2] / "models/mini/chat_template.jinja"
#: Styles that are more than text around turns, or need the other form of content.
NO_FORMS = {
    "parts": {"vicuna", "llama-2", "mistral", "gemma", "phi", "call block"},
    "string": {"llava-hf", "onevision", "next-mistral"},
}
#: What shows how a template works, not what a model's looks like.
ODD = set(list(TEMPLATES)[list(TEMPLATES).index("generation scopes") :])


def spec(template: str | None, content: Literal["parts", "string"] = "parts") -> PromptSpec:
    return replace(spec_of(""), chat_template=template, content=content)


LLAVA = PromptForms(
    start="",
    user=TurnForm(prefix="USER: ", suffix=" "),
    user_with_image=TurnForm(prefix="USER: <image>\n", suffix=" "),
    assistant=TurnForm(prefix="ASSISTANT: ", suffix=" "),
    generation_prompt="ASSISTANT:",
    image="<image>\n",
)
INST = TurnForm(prefix="[INST] ", suffix=" [/INST]")
TURNS = "{% for m in messages %}<{{ m.role }}>"
END = "</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
IMAGES = "{% for p in m.content if p.type == 'image' %}<image>{% endfor %}"
TEXTS = "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"


@pytest.mark.parametrize("template", [None, HUB, MINI.read_text()], ids=["no template", "hub", "mini"])
def test_llava(template: str | None) -> None:
    assert prompt_forms(spec(template)) == LLAVA


def test_published_forms() -> None:
    mistral = PromptForms(
        start="",
        user=INST,
        user_with_image=replace(INST, prefix="[INST] <image>\n"),
        assistant=TurnForm(prefix=" ", suffix="</s> "),
        generation_prompt="",
        image="<image>\n",
    )
    assert prompt_forms(spec(TEMPLATES["next-mistral"])) == mistral
    chatml = PromptForms(
        start="<|im_start|>system\nYou are helpful.<|im_end|>\n",
        user=TurnForm(prefix="<|im_start|>user\n", suffix="<|im_end|>\n"),
        user_with_image=TurnForm(prefix="<|im_start|>user\n<image>", suffix="<|im_end|>\n"),
        assistant=TurnForm(prefix="<|im_start|>assistant\n", suffix="<|im_end|>\n"),
        generation_prompt="<|im_start|>assistant\n",
        image="<image>",
    )
    assert prompt_forms(spec(TEMPLATES["chatml"])) == chatml
    onevision = PromptForms(
        start="",
        user=TurnForm(prefix="<|im_start|>user \n", suffix="<|im_end|>"),
        user_with_image=TurnForm(prefix="<|im_start|>user <image>\n", suffix="<|im_end|>"),
        assistant=TurnForm(prefix="<|im_start|>assistant \n", suffix="<|im_end|>"),
        generation_prompt="<|im_start|>assistant\n",
        image="<image>",
    )
    assert prompt_forms(spec(TEMPLATES["onevision"])) == onevision


@pytest.mark.parametrize("content", ["parts", "string"])
@pytest.mark.parametrize("style", [style for style in TEMPLATES if style not in ODD])
def test_forms_give_what_the_template_gives(style: str, content: Literal["parts", "string"]) -> None:
    """Also on a conversation that they were not proved on."""
    asked = spec(TEMPLATES[style], content)
    forms = prompt_forms(asked)
    assert (forms is None) == (style in NO_FORMS[content])
    said = [Turn("assistant", (f" {i} \n",)) if i % 2 else Turn("user", (f"\t{i}?",)) for i in range(9)]
    said[4], said[6] = Turn("user", (IMAGE, " this? ")), Turn("user", (*[IMAGE] * 5, "\nwhich?"))
    if forms is not None:
        assert forms.render(tuple(said)) == render_conversation(tuple(said), asked)


TRIM = TEXTS.replace("p.text", "p.text | trim")


@pytest.mark.parametrize(
    ("asked", "strips"),
    [
        (spec(TURNS + IMAGES + TEXTS + END), ("none", "none", "none")),
        (spec(TURNS + IMAGES + TRIM + END), ("both", "both", "both")),
        (spec(TURNS + "{{ m.content | trim }}" + END, "string"), ("both", "end", "both")),  # <image> first
        (
            spec(
                TURNS
                + IMAGES
                + "{% if m.role == 'user' %}"
                + TEXTS
                + "{% else %}"
                + TRIM
                + "{% endif %}"
                + END
            ),
            ("none", "none", "both"),
        ),
    ],
)
def test_white_space_that_texts_lose(asked: PromptSpec, strips: tuple[str, str, str]) -> None:
    forms = prompt_forms(asked)
    assert forms is not None
    assert (forms.user.strip, forms.user_with_image.strip, forms.assistant.strip) == strips


@pytest.mark.parametrize(
    "template",
    [
        TURNS + IMAGES + TEXTS,  # no end
        TURNS + TEXTS + IMAGES + END,  # the picture after its question
        TURNS + IMAGES.replace("<image>", "{{ loop.index }}<image>") + TEXTS + END,  # numbers the pictures
        TURNS + IMAGES.replace("<image>", "<image>{{ '; ' if loop.last else ', ' }}") + TEXTS + END,
        TURNS + "[" + IMAGES.replace("<image>", "{{ ', ' if not loop.first }}<image>") + "]" + TEXTS + END,
        TURNS + "{% if loop.first %}" + IMAGES + "{% endif %}" + TEXTS + END,  # not in later turns
        TURNS + "{{ loop.index }}" + IMAGES + TEXTS + END,
        TURNS + IMAGES + TEXTS + "{% if loop.index > 3 %}!{% endif %}" + END,
        TURNS + IMAGES + TEXTS.replace("p.text", "p.text | upper") + END,
        TURNS + IMAGES + TEXTS.replace("p.text", "p.text | replace('&', '&amp;')") + END,
        TURNS + IMAGES + TEXTS.replace("p.text", "p.text.lstrip()") + END,
        TURNS + IMAGES + TEXTS + TEXTS + END,
        TURNS + TEXTS + IMAGES + "{{ messages | length }}" + END,
        TURNS + "{% if loop.first %}<image>{% endif %}" + TEXTS + END,
        "{{ strftime_now('%Y') }}" + TURNS + IMAGES + TEXTS + END,
        "{{ raise_exception('no') }}",
        "{% for %}",
    ],
)
def test_what_is_more_than_text_around_turns(template: str) -> None:
    assert prompt_forms(spec(template)) is None


@pytest.mark.parametrize("written", ["Picture: <image>\n", "<a><image></a>", "<image>"])
def test_what_stands_for_each_of_several_pictures(written: str) -> None:
    forms = prompt_forms(spec(TURNS + IMAGES.replace("<image>", written) + TEXTS + END))
    assert forms is not None
    assert forms.image == written


def test_forms_of_a_bundle_for_one_picture() -> None:
    """As bundles before format 4 have them."""
    old = replace(LLAVA, image=None)
    assert old.render((Turn("user", (IMAGE, "Why?")),)) == "USER: <image>\nWhy? ASSISTANT:"
