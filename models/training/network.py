"""The mini LLaVA before training: configuration, tokenizer, processor, all in Hugging Face's layout."""

from collections.abc import Iterable

from tokenizers import decoders, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from star_export.testing.tokenizers import make_tokenizer

HIDDEN, VISION_LAYERS, LAYERS, HEADS = 128, 6, 8, 4
PATCH = 4
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_config(*, image_size: int, vocab: int, image_token_id: int) -> LlavaConfig:
    """LLaVA-1.5 in small: 6 + 8 layers of width 128.

    Args:
        image_size: Side of the pictures in pixels; patches are 4 pixels wide.
        vocab: Tokens in the vocabulary.
        image_token_id: The one that stands for the picture.
    """
    vision = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=image_size,
        patch_size=PATCH,
        projection_dim=HIDDEN,
    )
    text = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=vocab,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=(image_size // PATCH) ** 2,
        tie_word_embeddings=False,
    )


def make_processor(sentences: Iterable[str], *, image_size: int) -> LlavaProcessor:
    """CLIP's picture processor and a byte-level BPE tokenizer trained on ``sentences``."""
    images = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=_make_tokenizer(sentences),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _make_tokenizer(sentences: Iterable[str]) -> PreTrainedTokenizerFast:
    """Every word of the questions is one token, digits stand alone, case and "colour" do not matter."""
    return make_tokenizer(
        sentences,
        vocab_size=512,
        normalizer=normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("colour", "color")]),
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
        # Answers begin with a space, which belongs to no word.
        decoder=decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
    )
