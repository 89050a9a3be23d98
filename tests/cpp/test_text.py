"""C++ and Python make the same of texts."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.cpp.talker import Talker
from tests.cpp.texts import KINDS, long_texts, random_texts

COUNT = 3000


def _open(talker: Talker, content: str, folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(content)
    talker.ask("open", path=str(path))
    return Tokenizer.from_file(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_the_same(kind: str, talker: Talker, files: dict[str, str], tmp_path: Path) -> None:
    tokenizer = _open(talker, files[kind], tmp_path)
    texts = random_texts(COUNT, seed=KINDS.index(kind))
    for special in (True, False):
        expected = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=special)]
        found = talker.ask("encode", texts=texts, special=special)
        for text, got, wanted in zip(texts, found, expected, strict=True):
            assert got == wanted, repr(text)
    choose, size = random.Random(kind), tokenizer.get_vocab_size()
    drawn = [[choose.randrange(size + 3) for _ in range(choose.randint(0, 12))] for _ in range(COUNT)]
    for skip in (True, False):
        for ids in (expected, drawn):
            found = talker.ask("decode", ids=ids, skip=skip)
            for got, wanted, of in zip(found, tokenizer.decode_batch(ids, skip), ids, strict=True):
                assert got == wanted, (of, [tokenizer.id_to_token(i) for i in of])
    for token in range(size + 3):
        assert talker.ask("name", id=token) == tokenizer.id_to_token(token)
    for name in {*tokenizer.get_vocab(), "", "none of these"}:
        assert talker.ask("id", token=name) == tokenizer.token_to_id(name)


@pytest.mark.parametrize("kind", ["bytes", "llama2", "qwen2", "llama3", "llama2-first"])
def test_long_texts(kind: str, talker: Talker, files: dict[str, str], tmp_path: Path) -> None:
    tokenizer = _open(talker, files[kind], tmp_path)
    for text in long_texts():
        assert talker.ask("encode", texts=[text], special=True) == [tokenizer.encode(text).ids]


@pytest.mark.parametrize(
    "kind", ["qwen2", "llama3", "digits", "words", "normal-NFC-never", "normal-NFKD-never"]
)
def test_every_character(kind: str, talker: Talker, files: dict[str, str], tmp_path: Path) -> None:
    tokenizer = _open(talker, files[kind], tmp_path)
    codes = [code for code in (*range(0x323C0), *range(0xE0000, 0xE0200)) if not 0xD800 <= code < 0xE000]
    for first in range(0, len(codes), 20_000):
        pieces = [f"q{chr(code)}\u0323{chr(code)}q " for code in codes[first : first + 20_000]]
        texts = ["".join(pieces[i : i + 50]) for i in range(0, len(pieces), 50)]
        found = talker.ask("encode", texts=texts, special=True)
        for i, (got, text) in enumerate(zip(found, texts, strict=True)):
            assert got == tokenizer.encode(text).ids, hex(codes[first + 50 * i])
