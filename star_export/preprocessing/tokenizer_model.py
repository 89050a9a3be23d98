"""``tokenizer.model``: SentencePiece's file, which says what the tokens of a Llama-2 tokenizer are.

Needs the ``export`` extra. Read through SentencePiece itself: transformers' conversion depends on the
version of protobuf, and loses the space before a text that begins with one.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from star_export.errors import CheckpointError, PlatformError

#: Plain text that two tokenizers disagree about first. None begins with a space: published tokenizers
#: made by newer transformers drop it, and prompts begin with a word.
_TEXTS = (
    "USER: What is in the picture? ASSISTANT:",
    "two  spaces,   three\tand a tab",
    "trailing space ",
    "lines\nand\r\nlines\n\n",
    "\nbegins with a line end",
    "3.14159 + 2,000 = 2003.14159",
    "don't can't I'm",
    "Grüße, naïve café, e\u0301 combined",
    "ﬁ ① Ａ ™ ½",
    "日本語と한국어и русский",
    "🎉👩‍🚀 emoji",
    "\u200b\u00a0\u3000 odd spaces",
    "<0x0A> is text here",
    "under_score▁and ▁ meta",
    "def f(x):\n    return x ** 2",
)


def open_sentencepiece(path: Path) -> Any:
    """The ``SentencePieceProcessor`` of a file.

    Raises:
        CheckpointError: If it is something else.
        PlatformError: If sentencepiece is not installed.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise PlatformError(f"{path} needs sentencepiece; run: pip install 'star-export[export]'") from error
    try:
        return SentencePieceProcessor(model_file=str(path))
    except Exception as error:  # RuntimeError, OSError
        raise CheckpointError(
            f"{path} is not a SentencePiece model ({error}); get the file again, or a tokenizer.json"
        ) from error


def convert_sentencepiece(model: Any, config: dict[str, Any]) -> Tokenizer:
    """A fast tokenizer that encodes like a BPE ``model``.

    Args:
        model: Of :func:`open_sentencepiece`.
        config: ``tokenizer_config.json``: whether BOS and EOS are added, and ``legacy``, which puts a
            space before every piece of text between added tokens, as LLaVA was trained, not the first only.
    """
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=_merges(model, pieces),
            unk_token=pieces[model.unk_id()],
            fuse_unk=True,
            byte_fallback=any(map(model.is_byte, range(len(model)))),
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    if config.get("legacy") in (None, True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        tokenizer.normalizer = spaces
        # Metaspace adds nothing to a text that begins with its replacement; none begins with a space now.
        first = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
        then = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, then])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    special = [i for i in range(len(model)) if model.is_control(i) or model.is_unknown(i)]
    tokenizer.add_special_tokens([AddedToken(pieces[i], normalized=False, special=True) for i in special])
    tokenizer.post_processor = _ends(model, config)
    return tokenizer


def _merges(model: Any, pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two, best score first."""
    normal = {
        piece: (-model.get_score(i), i)
        for i, piece in enumerate(pieces)
        if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i) or model.is_unused(i))
    }
    ranked = [
        (*rank, piece[:at], piece[at:])
        for piece, rank in normal.items()
        for at in range(1, len(piece))
        if piece[:at] in normal and piece[at:] in normal
    ]
    return [(left, right) for _, _, left, right in sorted(ranked)]


def _ends(model: Any, config: dict[str, Any]) -> processors.TemplateProcessing:
    bos, eos = model.id_to_piece(model.bos_id()), model.id_to_piece(model.eos_id())
    before = [bos] if config.get("add_bos_token", True) else []
    after = [eos] if config.get("add_eos_token", False) else []
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[(bos, model.bos_id()), (eos, model.eos_id())],
    )


def require_same_tokens(tokenizer: Tokenizer, path: Path) -> None:
    """Compare a tokenizer with the ``tokenizer.model`` beside it, over plain text without added tokens.

    Raises:
        CheckpointError: With the first text that they encode differently.
    """
    model = open_sentencepiece(path)
    for text in _TEXTS:
        found, expected = tokenizer.encode(text, add_special_tokens=False).ids, model.encode(text)
        if found != expected:
            raise CheckpointError(
                f"the tokenizer of {path.parent} does not agree with its {path.name}: {text!r} is {found}, "
                f"expected {expected}; get tokenizer.json and {path.name} from the model's page"
            )
