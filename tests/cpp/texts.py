"""Texts and tokenizers on which two implementations may differ."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from star_export.testing.tokenizers import TOKENIZERS

Json = dict[str, Any]
MODELS = Path(__file__).parents[2] / "models"

_SENTENCES = (
    "What is in the picture? How many objects are there, and what colour is the one on the left? "
    "USER: ASSISTANT: don't CAN'T I'LL we've they're 'sſ 'K 3.14159 2,000 ½ ② "
    "Grüße naïve café straße İstanbul"
)
_WORDS = _SENTENCES.split()
_PARTS = (
    "日本語と한국어", "русский", "عربي", "हिन्दी", "ไทย", "e\u0301", "a\u0323\u0301\u0308",
    "\u1e9b\u0323", "ﬁ①Ａ™", "👩‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🎉", "\0", "\x00\x01\x7f",
    "\u200b\u00a0\u3000", "\u180e\u0085", "\ufeff", "\ufffd", "▁", "▁▁", "<0x0A>", "<0x+F>",
    "<0xZZ>", "Ġ", "Ċ", "    ", " " * 40, "\t", "\n", "\n\n\n", "\r\n", " \n ", "<s>", "</s>",
    "<unk>", "<pad>", "<image>", " <image> ", "<image><image>", "x<image>y", "<|im_start|>",
    "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>", "<ima", "ge>", "<word>", "a<word>b",
    "Left", "rIGHT", "가각힣ᄀ", "\u1100\u1161\u11a8", "ǅ", "ﬃ", "\U00010d40\U0001e4f0\U0001612f",
    "\u0958", "0123456789" * 3, "a" * 60,
)  # fmt: skip


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of words, odd parts and any characters."""
    choose = random.Random(seed)
    return ["", " ", "\n", "\0", *(_text(choose) for _ in range(count - 4))]


def _text(choose: random.Random) -> str:
    joint = choose.choice(("", " ", "", "  ", "\n"))
    kinds = choose.choice(
        (("word",), ("word", "part"), ("part",), ("any",), ("word", "part", "any", "latin"))
    )
    return joint.join(_part(choose, choose.choice(kinds)) for _ in range(choose.randint(1, 12)))


def _part(choose: random.Random, kind: str) -> str:
    if kind == "word":
        return choose.choice(_WORDS)
    if kind == "part":
        return choose.choice(_PARTS)
    if kind == "latin":
        return "".join(chr(choose.randint(0, 0x24F)) for _ in range(choose.randint(1, 6)))
    return "".join(_character(choose) for _ in range(choose.randint(1, 6)))


def _character(choose: random.Random) -> str:
    last = choose.choice((0x2FF, 0x3000, 0xFFFF, 0x1FFFF, 0x10FFFF))
    while True:
        code = choose.randint(0, last)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def long_texts() -> list[str]:
    """Words that take a naive merge seconds."""
    return ["a" * 200_000, "ab" * 50_000 + "!" * 50_000, " " * 100_000, "日" * 30_000, "\n \n" * 20_000]


def tokenizer_files() -> dict[str, str]:
    """Contents of ``tokenizer.json`` by kind."""
    files = {name: json.loads(make().backend_tokenizer.to_str()) for name, make in TOKENIZERS.items()}
    for name in ("mini", "mini-onevision"):
        files[name] = json.loads((MODELS / name / "tokenizer.json").read_text())
    for name, (base, change) in _VARIANTS.items():
        files[name] = json.loads(json.dumps(files[base]))
        change(files[name])
    return {name: json.dumps(file, ensure_ascii=False) for name, file in files.items()}


def _meta(scheme: str, *, replacement: str = "▁", split: bool = False) -> Json:
    return {"type": "Metaspace", "replacement": replacement, "prepend_scheme": scheme, "split": split}


def _replace(content: str = "▁") -> Json:
    return {"type": "Replace", "pattern": {"String": " "}, "content": content}


def _split(behavior: str, *, invert: bool = False, pattern: str = r"\s+|\p{N}") -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def _sequence(name: str, *steps: Json) -> Json:
    return {"type": "Sequence", name: list(steps)}


def _set(**parts: Any) -> Callable[[Json], None]:
    return lambda file: file.update(parts)


def _model(**values: Any) -> Callable[[Json], None]:
    return lambda file: file["model"].update(values)


def _merges_as_lines(file: Json) -> None:
    merges = file["model"]["merges"]
    file["model"]["merges"] = ["#version: 0.2", *(" ".join(merge) for merge in merges)]


def _without_bytes(file: Json) -> None:
    vocab = file["model"]["vocab"]
    file["model"]["vocab"] = {name: i for name, i in vocab.items() if not name.startswith("<0x8")}
    file["model"]["fuse_unk"] = False


def _add(*contents: str, **flags: bool) -> Callable[[Json], None]:
    def change(file: Json) -> None:
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        for content in contents:
            file["added_tokens"].append({"id": 0, "content": content, **plain, **flags})

    return change


def _all(*changes: Callable[[Json], None]) -> Callable[[Json], None]:
    return lambda file: [change(file) for change in changes] and None


_ODD = _all(
    _add("<word>", "the", "'", single_word=True),
    _add("Left", lstrip=True, normalized=True),
    _add("right", "é", rstrip=True, normalized=True, special=True),
    _add("▁▁", "  ", "picture?", lstrip=True, rstrip=True, special=True),
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
#: Kinds that are another with a few changes.
_VARIANTS: dict[str, tuple[str, Callable[[Json], None]]] = {
    "llama2-first": ("llama2", _set(normalizer=None, pre_tokenizer=_meta("first"))),
    "llama2-converted": (
        "llama2",
        _set(
            normalizer=_replace(),
            pre_tokenizer=_sequence("pretokenizers", _meta("first", replacement=" "), _meta("never")),
        ),
    ),
    "llama2-lines": ("llama2", _merges_as_lines),
    "llama2-unknown": ("llama2", _without_bytes),
    "llama2-odd": ("llama2", _ODD),
    "llama2-first-odd": ("llama2", _all(_set(normalizer=None, pre_tokenizer=_meta("first")), _ODD)),
    "metaspace": (
        "llama2",
        _set(normalizer=None, pre_tokenizer=_meta("always", split=True), decoder=_meta("always", split=True)),
    ),
    "metaspace-never": ("llama2", _set(pre_tokenizer=_meta("never", split=True), decoder=_meta("never"))),
    "replaced-then-first": (
        "llama2",
        _set(
            normalizer=_sequence("normalizers", {"type": "Prepend", "prepend": "_▁"}, _replace("▁_")),
            pre_tokenizer=_sequence(
                "pretokenizers", _split("Isolated", pattern="_"), _meta("first", split=True)
            ),
        ),
    ),
    "unknown-dropped": ("llama2", _model(unk_token=None, byte_fallback=False)),
    "unknown-single": ("llama2", _model(fuse_unk=False, byte_fallback=False)),
    "qwen2-lines": ("qwen2", _merges_as_lines),
    "qwen2-odd": ("qwen2", _ODD),
    "llama3-odd": ("llama3", _ODD),
    "llama3-nested": (
        "llama3",
        lambda file: file.update(
            post_processor=_sequence("processors", {**_BYTES, "use_regex": True}, file["post_processor"])
        ),
    ),
    "prefix-space": ("bytes", _set(pre_tokenizer={**_BYTES, "add_prefix_space": True, "use_regex": True})),
    "digits": (
        "bytes",
        _set(pre_tokenizer=_sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, _BYTES)),
    ),
    "digit-runs": (
        "bytes",
        _set(
            pre_tokenizer=_sequence("pretokenizers", {"type": "Digits", "individual_digits": False}, _BYTES)
        ),
    ),
    "words": ("bytes", _add("q", single_word=True)),
    "no-decoder": ("bytes", _set(decoder=None, post_processor=None)),
    "stripped": (
        "llama2",
        _set(
            normalizer={"type": "Strip", "strip_left": True, "strip_right": True},
            pre_tokenizer=_meta("first"),
            decoder={"type": "Strip", "content": "▁", "start": 2, "stop": 0},
        ),
    ),
    **{
        f"normal-{form}-{scheme}": (
            "bytes",
            _set(
                normalizer=_sequence("normalizers", {"type": form}, {"type": "Lowercase"}),
                pre_tokenizer=_sequence("pretokenizers", _meta(scheme, replacement="_"), _BYTES),
            ),
        )
        for form in ("NFC", "NFD", "NFKC", "NFKD")
        for scheme in ("never", "first")
    },
    **{
        f"split-{behavior}-{invert}": (
            "bytes",
            _set(pre_tokenizer=_sequence("pretokenizers", _split(behavior, invert=invert), _BYTES)),
        )
        for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
        for invert in (False, True)
    },
    "split-empty": (
        "bytes",
        _set(pre_tokenizer=_sequence("pretokenizers", _split("MergedWithNext", pattern="a*|(?=i)"), _BYTES)),
    ),
}
KINDS = (*TOKENIZERS, "mini", "mini-onevision", *_VARIANTS)
