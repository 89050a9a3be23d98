"""Text of an answer as its tokens come, and where it ends."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from star_export.answer.transcript import TextStream, Transcript, check_stop
from star_export.errors import SettingsError
from star_export.preprocessing.prompts import end_token_ids
from star_export.testing.tokenizers import llama2_tokenizer

END = 0
MINI = Path(__file__).parents[2] / "models/mini/tokenizer.json"
TEXTS = ["What is in the picture? A red circle, 3 dogs.", "Zwei Wörter  と 犬🐕 \n\n 👩‍👩‍👧 é", " spaces \t "]


def trained(special: list[str], *, added: tuple[str, ...] = (), metaspace: bool = False) -> Tokenizer:
    """A BPE tokenizer of :data:`TEXTS`, with tokens that end within a character unless ``metaspace``."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>" if metaspace else None))
    split = pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Metaspace() if metaspace else decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=[] if metaspace else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer


def qwen2() -> Tokenizer:
    tokenizer = trained(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], added=("<tool_call>", "</tool_call>")
    )
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "llama-2": lambda: llama2_tokenizer().backend_tokenizer,
    "metaspace": lambda: trained(["<unk>", "</s>"], metaspace=True),
    "llama-3": lambda: trained(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]),
    "qwen-2": qwen2,
    "mini": lambda: Tokenizer.from_file(str(MINI)),
}


def random_tokens(tokenizer: Tokenizer, generator: random.Random) -> list[int]:
    """Runs of any tokens, of bytes, of text and of special tokens; some are in no vocabulary."""
    size = tokenizer.get_vocab_size()
    tokens = {token: i for token, i in tokenizer.get_vocab().items() if len(token) == 1}
    fallback = [i for token, i in tokenizer.get_vocab().items() if token.startswith("<0x")]
    special = list(tokenizer.get_added_tokens_decoder())
    runs: list[Callable[[], list[int]]] = [
        lambda: generator.choices(range(size + 3), k=4),
        lambda: generator.choices(fallback or list(tokens.values()), k=4),
        lambda: generator.choices(special, k=2),
        lambda: tokenizer.encode(generator.choice(TEXTS), add_special_tokens=False).ids[:12],
    ]
    return [token for _ in range(generator.randint(1, 5)) for token in generator.choice(runs)()]


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def test_the_pieces_of_any_tokens_add_up_to_their_text(any_tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    for _ in range(2000):
        tokens = random_tokens(any_tokenizer, generator)
        stream = TextStream(any_tokenizer)
        found = "".join(stream.push(token) for token in tokens) + stream.finish()
        assert found == any_tokenizer.decode(tokens), tokens


def test_words_come_with_their_tokens(any_tokenizer: Tokenizer) -> None:
    tokens = any_tokenizer.encode("What is in the picture?", add_special_tokens=False).ids
    stream, text = TextStream(any_tokenizer), ""
    for count, token in enumerate(tokens, 1):
        text += stream.push(token)
        assert text == any_tokenizer.decode(tokens[:count])


def test_all_but_an_incomplete_character_comes_at_once() -> None:
    """Of a token that ends within a character, and of bytes that never become one."""
    tokenizer = trained([])
    stream = TextStream(tokenizer)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("a犬")[0][0]
    ids = [tokenizer.token_to_id(letter) for letter in letters]  # a, then three bytes
    assert [stream.push(token) for token in [*ids[:3], ids[1], *ids[1:], ids[2]]] == [
        *("a", "", "", "�", "�", "", "犬", "")
    ]
    assert stream.finish() == "�"


class Watched:
    """A tokenizer that notes how many tokens it decodes at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.decoded = tokenizer, 0
        self.id_to_token = tokenizer.id_to_token
        self.get_added_tokens_decoder = tokenizer.get_added_tokens_decoder

    def decode(self, ids: list[int]) -> str:
        self.decoded += len(ids)
        return str(self.tokenizer.decode(ids))


@pytest.mark.parametrize("text", ["What is in the picture? ", "犬🐕"])
def test_a_long_answer_is_not_decoded_again_and_again(any_tokenizer: Tokenizer, text: str) -> None:
    tokens = any_tokenizer.encode(200 * text, add_special_tokens=False).ids
    watched = Watched(any_tokenizer)
    stream = TextStream(watched)  # type: ignore[arg-type]
    found = "".join(stream.push(token) for token in tokens) + stream.finish()
    assert found == any_tokenizer.decode(tokens)
    assert watched.decoded <= 10 * len(tokens)


def test_stop_strings_cut_any_text_where_the_first_is_complete(any_tokenizer: Tokenizer) -> None:
    generator = random.Random(1)
    for _ in range(300):
        tokens = random_tokens(any_tokenizer, generator)
        whole = any_tokenizer.decode(tokens)
        at = [generator.randrange(len(whole) + 1) for _ in range(3)]
        stop = tuple(whole[i : i + generator.randint(1, 4)] or "?" for i in at)
        ends = [end for end in range(len(whole) + 1) if whole[:end].endswith(stop)]
        expected = whole
        if ends:
            expected = min((whole[: ends[0]].removesuffix(text) for text in stop), key=len)
        transcript = Transcript(any_tokenizer, eos_token_ids=(), max_new_tokens=10**6, stop=stop)
        found = ""
        for token in tokens:
            found += transcript.push(token)
            assert expected.startswith(found)
            if transcript.finish_reason:
                break
        assert found + transcript.finish() == transcript.text == expected


def test_end_tokens_are_exactly_one_token() -> None:
    tokenizer = TOKENIZERS["llama-3"]()
    assert end_token_ids(["<|eot_id|>", "<|end_of_text|>"], tokenizer) == (2, 1)
    for text in ("<|nothing|>", "What is", ""):
        with pytest.raises(SettingsError, match=r"end_tokens=.* is no token of this model"):
            end_token_ids([text], tokenizer)


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
    assert pieces(tokenizer, "abcd", stop=("c", "bc")) == ["a", "", "", "", "stop"]  # not the first listed
    assert pieces(tokenizer, "xaaab", stop=("aab",)) == ["x", "", "", "a", "", "", "stop"]


@pytest.mark.parametrize("stop", [[""], ["x" * 257], ["a"] * 17])
def test_stop_strings_are_checked(stop: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"^stop takes at most 16 strings of 1 to 256"):
        check_stop(stop)
