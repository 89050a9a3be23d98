"""Text of an answer as its tokens come, and where it ends."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from star_export.errors import SettingsError
from star_export.transcript import Transcript, check_stop

END = 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Every byte is a token; 0 is special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"</s>": END, **{letter: i + 1 for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str, *, stop: tuple[str, ...] = (), limit: int = 99) -> list[str]:
    transcript = Transcript(tokenizer, eos_token_ids=(END,), max_new_tokens=limit, stop=stop)
    found = []
    for token in [*tokenizer.encode(text).ids, END]:
        found.append(transcript.push(token))
        if transcript.finish_reason:
            break
    found.append(transcript.finish())
    assert "".join(found) == transcript.text
    return [*found, transcript.finish_reason]


def test_text_comes_token_by_token(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "abc") == ["a", "b", "c", "", "", "stop"]
    assert pieces(tokenizer, "abc", limit=2) == ["a", "b", "", "length"]


def test_a_character_of_several_tokens_comes_when_it_is_whole(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "aé") == ["a", "", "é", "", "", "stop"]
    assert pieces(tokenizer, "aé", limit=2) == ["a", "", "�", "length"]


def test_a_stop_string_ends_the_answer_and_is_never_shown(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "a\nbc", stop=("\nb",)) == ["a", "", "", "", "stop"]
    assert pieces(tokenizer, "a\nc", stop=("\nb",)) == ["a", "", "\nc", "", "", "stop"]
    assert pieces(tokenizer, "a\n", stop=("\nb",)) == ["a", "", "", "\n", "stop"]
    assert pieces(tokenizer, "abab", stop=("bb", "ba")) == ["a", "", "", "", "stop"]
    assert pieces(tokenizer, "xaab", stop=("aab",)) == ["x", "", "", "", "", "stop"]
    assert pieces(tokenizer, "xaaab", stop=("aab",)) == ["x", "", "", "a", "", "", "stop"]


@pytest.mark.parametrize("stop", [[""], ["x" * 257], ["a"] * 17])
def test_stop_strings_are_checked(stop: list[str]) -> None:
    with pytest.raises(SettingsError, match="--stop takes at most 16 strings of 1 to 256"):
        check_stop(stop)
