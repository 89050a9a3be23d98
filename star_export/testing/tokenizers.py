"""Small tokenizers of the kinds that published checkpoints have."""

import json
from collections.abc import Callable, Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

_SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
_CORPUS = (
    "USER: What is in the picture? ASSISTANT: a red circle above the blue square",
    "How many objects are there and what colour is the one on the left?",
    "Describe the image in detail. Where is the dog? What is written on the sign?",
)
#: How Llama-3 takes a text apart: words with one character before them, up to three digits, marks, spaces.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(
    sentences: Iterable[str],
    *,
    vocab_size: int,
    normalizer: normalizers.Normalizer | None = None,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
    decoder: decoders.Decoder | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds BOS.

    Args:
        sentences: What it is trained on.
        vocab_size: Tokens at most, with 5 special ones and 256 bytes.
        normalizer: Applied to text first; nothing by default.
        pre_tokenizer: Byte level by default.
        decoder: Byte level by default.
    """
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoder or decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return _fast(tokenizer)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A plain byte-level one, special tokens first."""
    return make_tokenizer(_CORPUS, vocab_size=400)


def llama2_tokenizer() -> PreTrainedTokenizerFast:
    """Llama-2's and Mistral's kind: words begin with ``▁``, a character without a token is its bytes."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = pre_tokenizers.Metaspace(prepend_scheme="never")  # no token spans two words
    vocab, merges = _train(words, vocab_size=200, normalizer=spaces)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *vocab]
    tokenizer = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(_SPECIAL_TOKENS)
    return _fast(tokenizer)


def qwen2_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen2's kind, as OneVision and Interleave have it: bytes, special tokens last, no BOS."""
    vocab, merges = _train(pre_tokenizers.ByteLevel(add_prefix_space=False), vocab_size=380)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    vocab |= {name: number for number, name in enumerate(special, start=len(vocab))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    tokenizer.add_special_tokens({"extra_special_tokens": special[1:2]})
    return tokenizer


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """Llama-3's kind: bytes, whole words before merges, special tokens last, BOS."""
    vocab, merges = _train(pre_tokenizers.ByteLevel(add_prefix_space=False), vocab_size=380)
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
    begin, *others = [f"<|{name}|>" for name in names]
    tokenizer.add_special_tokens([begin, *others, "<image>", "<pad>"])
    return _fast(tokenizer, bos=begin, eos="<|eot_id|>", unk=None)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": bytes_tokenizer,
    "llama2": llama2_tokenizer,
    "qwen2": qwen2_tokenizer,
    "llama3": llama3_tokenizer,
}


def _train(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    *,
    vocab_size: int,
    normalizer: normalizers.Normalizer | None = None,
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the corpus; with all bytes where text is taken as such."""
    trained = Tokenizer(models.BPE())
    if normalizer is not None:
        trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizer
    is_bytes = isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if is_bytes else []
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(_CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _fast(
    tokenizer: Tokenizer, *, bos: str = "<s>", eos: str = "</s>", unk: str | None = "<unk>"
) -> PreTrainedTokenizerFast:
    """With BOS before a text, and the special tokens by name."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
