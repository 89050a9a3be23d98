"""The forms of a model's prompts, found by trying its chat template."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product, takewhile

from star_export.errors import InputError
from star_export.preprocessing.conversation import IMAGE, Conversation, Turn
from star_export.preprocessing.forms import STRIPPED, PromptForms, Strip, TurnForm
from star_export.preprocessing.prompts import PromptSpec, render_conversation

#: Texts that a template may change: white space at their ends, markup, other scripts.
_SAID = (" What is it? ", "\n{a} 'dog' & <b>more</b>\n", "  Und wo,\n\n bitte?", "Dort: 犬 ", "Warum?\t")


def prompt_forms(spec: PromptSpec) -> PromptForms | None:
    """The forms of a model's prompts, or None if its chat template does more than to stand around texts.

    Found by rendering short conversations, and proved on others of one to three questions with up to three
    pictures each.
    """
    if "strftime_now" in (spec.chat_template or ""):
        return None  # it writes another prompt tomorrow
    try:
        found, proofs = _derive(spec), {said: render_conversation(said, spec) for said in _conversations()}
    except InputError:
        return None
    for strips in product(STRIPPED, repeat=3):
        forms = _stripping(found, *strips)
        if all(forms.render(said) == text for said, text in proofs.items()):
            return forms
    return None


def _stripping(forms: PromptForms, user: Strip, user_with_image: Strip, assistant: Strip) -> PromptForms:
    return replace(
        forms,
        user=replace(forms.user, strip=user),
        user_with_image=replace(forms.user_with_image, strip=user_with_image),
        assistant=replace(forms.assistant, strip=assistant),
    )


def _derive(spec: PromptSpec) -> PromptForms:
    """Forms that fit two conversations. Where a turn ends is told by what stands there in all of them."""
    shown, answer, asked = _user("SHOWN", 1), Turn("assistant", ("ANSWER",)), _user("ASKED")
    first, answered, then, last = _joints((shown, answer, asked), spec)
    _, _, then_shown, _ = _joints((asked, answer, shown), spec)
    user_end = _common(answered, last, _joints((shown,), spec, add_generation_prompt=False)[-1])
    answer_end = _common(then, _joints((shown, answer), spec, add_generation_prompt=False)[-1])
    user_with_image = then_shown.removeprefix(answer_end)
    twice, *_ = _joints((_user("SHOWN", 2), answer, asked), spec)
    return PromptForms(
        start=first.removesuffix(user_with_image),
        user=TurnForm(prefix=then.removeprefix(answer_end), suffix=user_end),
        user_with_image=TurnForm(prefix=user_with_image, suffix=user_end),
        assistant=TurnForm(prefix=answered.removeprefix(user_end), suffix=answer_end),
        generation_prompt=last.removeprefix(user_end),
        image=_repeated(first, twice, spec.image_token),
    )


def _repeated(once: str, twice: str, image_token: str) -> str:
    """What ``twice`` has two times and ``once`` has one time, with the image token in it.

    Raises:
        InputError: If that is not all in which they differ.
    """
    at, length = once.find(image_token), len(twice) - len(once)
    for first in range(at, max(0, at + len(image_token) - length) - 1, -1):
        image = once[first : first + length]
        if once.replace(image, 2 * image, 1) == twice:
            return image
    raise InputError("the chat template does not write each picture alike")


def _joints(
    conversation: Conversation, spec: PromptSpec, *, add_generation_prompt: bool = True
) -> tuple[str, ...]:
    """What the template writes before, between and after the texts.

    Raises:
        InputError: If it does not write each of them once, or refuses.
    """
    text = render_conversation(conversation, spec, add_generation_prompt=add_generation_prompt)
    pattern = "(.*)".join(["", *(said for turn in conversation for said in turn.texts), ""])
    match = re.fullmatch(pattern, text, re.DOTALL)
    if match is None:
        raise InputError("the chat template changes the texts or leaves some out")
    return match.groups()


def _common(*texts: str) -> str:
    """What all of them begin with."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


def _conversations() -> Iterator[Conversation]:
    """Conversations of one to three questions, with up to three pictures in one of them or in all."""
    for length in (1, 3, 5):
        for pictured in range(0, length, 2):
            for count in (1, 2, 3):
                yield _conversation(length, {pictured: count})
        yield _conversation(length, {0: 1, 2: 2, 4: 1})


def _conversation(length: int, pictures: dict[int, int]) -> Conversation:
    return tuple(
        Turn("assistant", (text,)) if index % 2 else _user(text, pictures.get(index, 0))
        for index, text in enumerate(_SAID[:length])
    )


def _user(text: str, pictures: int = 0) -> Turn:
    return Turn("user", (*[IMAGE] * pictures, text))
