"""What a conversation adds to itself, so that it can go on where its KV caches end."""

from tokenizers import Tokenizer

from star_export.preprocessing.conversation import Conversation, Turn
from star_export.preprocessing.forms import STRIPPED
from star_export.preprocessing.prompts import PromptSpec, encode, render_conversation

#: Stands for an answer, to tell what the template writes before and behind it.
_ANSWER = "star-export's answer"


def tokens_behind_answer(
    conversation: Conversation, tokenizer: Tokenizer, spec: PromptSpec
) -> tuple[int, ...] | None:
    """Tokens of what the template writes behind the last answer: the new question, and what opens its answer.

    What stands before and in the answer stays in the caches as the model saw and wrote it.

    Args:
        conversation: Turns that end with a question behind an answer.
        tokenizer: The model's tokenizer.
        spec: The model's prompt parameters.

    Returns:
        None if the template changes more than the end, or a token would span the answer's end.

    Raises:
        InputError: If template or tokenizer refuse.
    """
    behind = _text_behind_answer(conversation, spec)
    if not behind:
        return None
    whole = render_conversation(conversation, spec)
    before, ids = (encode(text, tokenizer, spec) for text in (whole[: -len(behind)], whole))
    return tuple(ids[len(before) :]) if ids[: len(before)] == before else None


def _text_behind_answer(conversation: Conversation, spec: PromptSpec) -> str | None:
    *said, answer, question = conversation
    begun = render_conversation(tuple(said), spec, add_generation_prompt=False)
    tried = render_conversation((*said, Turn("assistant", (_ANSWER,)), question), spec)
    head, _, behind = tried.removeprefix(begun).partition(_ANSWER)
    texts = (strip("".join(answer.texts)) for strip in STRIPPED.values())
    if render_conversation(conversation, spec) in {begun + head + text + behind for text in texts}:
        return behind
    return None
