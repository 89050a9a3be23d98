"""Checkpoint folders as people publish them: each works, or is refused with the true reason and the way out.

The base is a LLaVA-1.5 checkpoint with a Llama-2 tokenizer, as converted by transformers 4.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from PIL import Image
from tokenizers import Tokenizer
from transformers import LlamaTokenizer

from star_export.bundle import TOKENIZER
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.generation_config import warn_of_unused_settings
from star_export.errors import CheckpointError
from star_export.preprocessing import convert, load_image, tokenize
from star_export.preprocessing.processor import read_processor
from star_export.preprocessing.tokenizer_model import convert_sentencepiece, open_sentencepiece
from star_export.testing.checkpoints import PRESETS, make_checkpoint
from star_export.validation.expected import (
    compare_tokenized,
    expected_input,
    picture_inputs,
    processor_inputs,
)
from star_export.validation.reference import Reference

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
CORPUS = (
    "USER: What is in the picture? ASSISTANT: a red circle above the blue square",
    "How many objects are there and what colour is the one on the left?",
    "Describe the image in detail. Where is the dog? What is written on the sign?",
)
CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
    "tokenizer_class": "LlamaTokenizer",
}
PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    data = json.loads(path.read_text()) | values
    write(path, {name: value for name, value in data.items() if value is not None})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with Llama-2's kind of tokenizer: BPE of SentencePiece with bytes for what it lacks."""
    folder = tmp_path_factory.mktemp("published")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    shape = replace(PRESETS["mha"], image_size=56, patch_size=7, layers=2, vision_layers=2, shard_size="1GB")
    make_checkpoint(folder, shape)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).unlink()
    image = {"content": "<image>", "special": True, "normalized": False}
    write(folder / "tokenizer_config.json", CONFIG | {"added_tokens_decoder": {"340": image}})
    edit(folder / "config.json", image_token_index=340)
    side = {"height": 56, "width": 56}
    write(
        folder / "preprocessor_config.json",
        {"image_processor_type": "CLIPImageProcessor", "crop_size": side, "size": {"shortest_edge": 56}},
    )
    write(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 7,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    model = open_sentencepiece(folder / "tokenizer.model")
    fast = convert_sentencepiece(model, CONFIG | {"legacy": True})  # as LLaVA's tokenizer.json is
    fast.add_special_tokens(["<image>"])
    fast.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy of it, free to be changed."""
    return Path(shutil.copytree(base, tmp_path / "checkpoint"))


def prepare(folder: Path, bundle: Path) -> tuple[Any, Any, Tokenizer]:
    """What ``build`` makes of a folder first: processor, prompt parameters, the bundle's tokenizer."""
    model = open_checkpoint(str(folder)).model
    processor = read_processor(folder)
    bundle.mkdir(exist_ok=True)
    convert.save_tokenizer(processor.tokenizer.backend_tokenizer, bundle / TOKENIZER)
    convert.image_spec(processor, model)
    return processor, convert.prompt_spec(processor, model), Tokenizer.from_file(str(bundle / TOKENIZER))


@pytest.mark.parametrize(
    "poorer",
    [
        {"patch_size": None},
        {"num_additional_image_tokens": None},
        {"vision_feature_select_strategy": None},
        {"processor_class": None},
        {"patch_size": 14, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"},
        None,
    ],
    ids=str,
)
def test_the_reference_follows_the_models_config(folder: Path, poorer: dict[str, Any] | None) -> None:
    """Without it: patch_size None is a TypeError, no additional token is one image token too few."""
    if poorer is None:
        (folder / "processor_config.json").unlink()
    else:
        edit(folder / "processor_config.json", **poorer)
    processor, spec, tokenizer = prepare(folder, folder / "bundle")
    picture = load_image(Image.new("RGB", (70, 60), "red"))
    expected = expected_input(processor, [picture], PROMPT)
    assert int((expected.full_ids == 340).sum()) == 64
    found = tokenize(PROMPT, tokenizer, spec, tokens_per_image=[58])
    assert compare_tokenized(found, expected.prompt([64], [58])) is None


@pytest.mark.parametrize(
    "left",
    [
        {"truncation": {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 120},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 2,
                "pad_type_id": 0,
                "pad_token": "</s>",
            }
        },
    ],
    ids=["truncation", "padding"],
)
def test_the_reference_neither_cuts_nor_pads(base: Path, folder: Path, left: dict[str, Any]) -> None:
    edit(folder / "tokenizer.json", **left)
    picture = Image.new("RGB", (70, 60))
    whole, found = (processor_inputs(read_processor(f), [picture], PROMPT) for f in (base, folder))
    assert found["input_ids"].tolist() == whole["input_ids"].tolist()


TEXTS = (
    PROMPT,
    " a space before",
    "  two before",
    "▁meta",
    "two  spaces\tand a tab\n",
    "Grüße ① 日本 🎉",
    "",
    " ",
    "\n",
)


@pytest.mark.parametrize("legacy", [False, True, None])
def test_tokenizer_model_alone(folder: Path, legacy: bool | None) -> None:
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", legacy=legacy)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    processor, _, tokenizer = prepare(folder, folder / "bundle")
    for text in TEXTS[1:]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == pieces.encode(text)
    first, second = (pieces.encode(text) for text in PROMPT.split("<image>"))
    if legacy is False:  # no space before the text after the picture
        assert second[0] == pieces.piece_to_id("▁")
        del second[0]
    assert tokenizer.encode(PROMPT).ids == [1, *first, 340, *second]
    assert processor.tokenizer(PROMPT).input_ids == [1, *first, 340, *second]
    assert tokenizer.decode(tokenizer.encode("a red  dog 🎉").ids) == "a red  dog 🎉"


def test_tokenizer_model_alone_is_llama_tokenizers(folder: Path) -> None:
    """Made from vocabulary and merges: its reading of tokenizer.model depends on protobuf's version."""
    converted = json.loads((folder / "tokenizer.json").read_text())["model"]
    llama = LlamaTokenizer(vocab=converted["vocab"], merges=[tuple(m) for m in converted["merges"]])
    llama.add_special_tokens({"additional_special_tokens": ["<image>"]})
    (folder / "tokenizer.json").unlink()
    tokenizer = prepare(folder, folder / "bundle")[2]
    for text in (PROMPT, *CORPUS):
        assert tokenizer.encode(text, add_special_tokens=False).ids == llama.encode(
            text, add_special_tokens=False
        )


def lose_the_space(data: dict[str, Any]) -> None:
    data["normalizer"] = data["normalizer"]["normalizers"][1]


def forget_a_merge(data: dict[str, Any]) -> None:
    del data["model"]["merges"][3]


def make_compatible(data: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, data["normalizer"]]}


@pytest.mark.parametrize(
    ("damage", "text"),
    [(lose_the_space, "USER: What"), (forget_a_merge, "USER: What"), (make_compatible, "Grüße")],
)
def test_tokenizer_json_that_contradicts_tokenizer_model(
    folder: Path, damage: Callable[[dict[str, Any]], None], text: str
) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    damage(data)
    write(folder / "tokenizer.json", data)
    with pytest.raises(CheckpointError, match=f"does not agree with its tokenizer.model: '{text}"):
        read_processor(folder)


def test_tokenizer_model_that_is_something_else(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"tiktoken")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a SentencePiece model"):
        read_processor(folder)


def test_settings_that_are_not_used_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(
        folder / "generation_config.json",
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
        num_beams=1,
        do_sample=True,
        temperature=0.7,
    )
    with caplog.at_level(logging.WARNING, "star_export"):
        warn_of_unused_settings(folder)
    [record] = caplog.records
    assert "sets repetition_penalty=1.3, no_repeat_ngram_size=2: not used" in record.message


def test_settings_of_no_effect_are_not_named(
    base: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    neutral = {
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "guidance_scale": 1.0,
        "num_beams": 1,
    }
    zero = ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens")
    edit(folder / "generation_config.json", **neutral, **dict.fromkeys(zero, 0), temperature=0.7, top_k=5)
    with caplog.at_level(logging.WARNING, "star_export"):
        warn_of_unused_settings(base)
        warn_of_unused_settings(folder)
    assert not caplog.records


def test_the_reference_generates_without_them(base: Path, folder: Path) -> None:
    edit(folder / "generation_config.json", repetition_penalty=5.0, suppress_tokens=list(range(4, 300)))
    inputs = processor_inputs(read_processor(base), [Image.new("RGB", (70, 60), "red")], PROMPT)
    answers = [
        Reference(f).generate(inputs["input_ids"][0], picture_inputs(inputs), max_new_tokens=8)
        for f in (base, folder)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "preprocessor_config.json"])
def test_git_lfs_pointers_beside_the_weights(folder: Path, name: str) -> None:
    (folder / name).write_bytes(LFS_POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer, not the file itself"):
        read_processor(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("preprocessor_config.json",),
            "has no preprocessor_config.json, which says how pictures are prepared; get",
        ),
        (("tokenizer.json", "tokenizer.model"), "has neither tokenizer.json nor tokenizer.model; get"),
    ],
)
def test_missing_files_of_the_processor(folder: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        read_processor(folder)
