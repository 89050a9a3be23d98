"""The mini OneVision model before training: configuration, tokenizer, processor, in Hugging Face's layout."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)

HIDDEN, VISION_LAYERS, LAYERS, HEADS = 128, 5, 8, 4
TILE, PATCH = 48, 8
#: Heights and widths of a picture in tiles: one to nine of them, and twelve, which are then resized.
PINPOINTS = [[TILE * rows, TILE * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
PINPOINTS += [[3 * TILE, 4 * TILE], [4 * TILE, 3 * TILE]]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_config(tokenizer: Qwen2Tokenizer) -> LlavaOnevisionConfig:
    """LLaVA-OneVision in small: 5 + 8 layers of width 128, tiles of 6 x 6 patches.

    Args:
        tokenizer: Says how large the vocabulary is and which tokens stand for pictures.
    """
    vision = SiglipVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=TILE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=vocabulary_size(tokenizer),
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )


def vocabulary_size(tokenizer: Qwen2Tokenizer) -> int:
    """Tokens in the vocabulary, rounded up to a multiple of 16."""
    return -(-len(tokenizer) // 16) * 16


def make_image_processor() -> LlavaOnevisionImageProcessorPil:
    """The published one, but for the sizes."""
    return LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


@dataclass(frozen=True)
class Processor:
    """What `LlavaOnevisionProcessor` is made of; that class itself does not start without torchvision."""

    image_processor: LlavaOnevisionImageProcessorPil
    tokenizer: Qwen2Tokenizer

    def save_pretrained(self, folder: Path) -> None:
        """Write the files that `LlavaOnevisionProcessor` reads, as published checkpoints have them."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        rest = {
            "image_token": "<image>",
            "num_image_tokens": (TILE // PATCH) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_aspect_ratio": "anyres_max_9",
            "vision_feature_select_strategy": "full",
        }
        (folder / "processor_config.json").write_text(json.dumps(rest, indent=2) + "\n")


def make_processor(sentences: Iterable[str]) -> Processor:
    """Tiles for pictures, and Qwen2's kind of tokenizer trained on ``sentences``."""
    return Processor(make_image_processor(), _make_tokenizer(sentences))


def _make_tokenizer(sentences: Iterable[str]) -> Qwen2Tokenizer:
    """Every word of the questions is one token; digits stand alone."""
    empty = Qwen2Tokenizer()
    trained = empty.train_new_from_iterator(
        sentences, vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        chat_template=CHAT_TEMPLATE,
    )
