"""Small random LLaVA checkpoints in Hugging Face layout, for tests and benchmarks.

Weights are random but not tiny: attention is far from uniform, so that kept
tokens, caches and logits really depend on every part of the model.

Example:
    python -m star_export.testing.checkpoints mha OUT
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

_SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
_CORPUS = (
    "USER: What is in the picture? ASSISTANT: a red circle above the blue square",
    "How many objects are there and what colour is the one on the left?",
    "Describe the image in detail. Where is the dog? What is written on the sign?",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Shape of a checkpoint; see :data:`PRESETS`.

    Attributes:
        decoder: Hugging Face's name of the decoder's kind.
    """

    image_size: int
    patch_size: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    decoder: str = "llama"
    vocab: int = 512
    max_positions: int = 2048
    chat_template: str | None = None
    llama2_tokenizer: bool = False
    rope_parameters: tuple[tuple[str, object], ...] = (("rope_type", "default"), ("rope_theta", 10000.0))
    attention_bias: bool = False
    tied: bool = False
    dtype: torch.dtype = torch.float32
    shard_size: str = "200kB"


_LLAMA3_ROPE: tuple[tuple[str, object], ...] = (
    ("rope_type", "llama3"),
    ("rope_theta", 500000.0),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 256),
)

PRESETS = {
    # Multi-head attention, LLaVA-1.5's 24x24 patches.
    "mha": Preset(
        image_size=96, patch_size=4, vision_hidden=48, vision_layers=4, vision_heads=4,
        hidden=64, intermediate=160, layers=6, heads=4, kv_heads=4,
    ),
    # Grouped-query attention, chat template, scaled rope, biases, tied embeddings.
    "gqa": Preset(
        image_size=336, patch_size=14, vision_hidden=32, vision_layers=3, vision_heads=2,
        hidden=128, intermediate=256, layers=4, heads=8, kv_heads=2,
        chat_template=CHAT_TEMPLATE, rope_parameters=_LLAMA3_ROPE, attention_bias=True, tied=True,
    ),
    # Llama-2's tokenizer, as LLaVA-1.5 has it; 8x8 patches and few layers: quick to build.
    "vicuna": Preset(
        image_size=56, patch_size=7, vision_hidden=32, vision_layers=3, vision_heads=2,
        hidden=64, intermediate=128, layers=3, heads=4, kv_heads=4, llama2_tokenizer=True,
    ),
    # More layers than LLaVA-1.5-7B and another image grid (16x16).
    "deep": Preset(
        image_size=128, patch_size=8, vision_hidden=32, vision_layers=3, vision_heads=4,
        hidden=64, intermediate=128, layers=36, heads=4, kv_heads=2,
    ),
    # 30 M parameters: more than a CPU caches, as serving has it. 16x16 patches of 14 pixels, grouped queries.
    "serving": Preset(
        image_size=224, patch_size=14, vision_hidden=96, vision_layers=4, vision_heads=4,
        hidden=512, intermediate=2048, layers=8, heads=8, kv_heads=2, shard_size="200MB",
    ),
    # About 0.5 B parameters, in LLaVA-1.5's proportions, for `star-export bench`.
    "bench": Preset(
        image_size=336, patch_size=14, vision_hidden=512, vision_layers=12, vision_heads=8,
        hidden=1280, intermediate=3456, layers=20, heads=20, kv_heads=20, vocab=32064,
        max_positions=4096, dtype=torch.float16, shard_size="400MB",
    ),
    # 3 GB of float16 weights, to measure the memory of a build.
    "large": Preset(
        image_size=336, patch_size=14, vision_hidden=1024, vision_layers=12, vision_heads=16,
        hidden=2048, intermediate=5504, layers=24, heads=16, kv_heads=16, vocab=32064,
        max_positions=4096, dtype=torch.float16, shard_size="1GB",
    ),
}  # fmt: skip


def make_checkpoint(folder: Path, preset: str | Preset, *, seed: int = 0) -> Path:
    """Write a random checkpoint: config, sharded safetensors, tokenizer, processor.

    Args:
        folder: Folder to fill; made when missing.
        preset: A name from :data:`PRESETS`, or a shape of your own.
        seed: Seed of the weights.

    Returns:
        ``folder``.
    """
    shape = PRESETS[preset] if isinstance(preset, str) else preset
    folder.mkdir(parents=True, exist_ok=True)
    processor = _processor(shape)
    image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(_config(shape, image_token_id))
    _spread(model)
    torch.set_rng_state(before)
    model.to(shape.dtype).save_pretrained(folder, max_shard_size=shape.shard_size)
    processor.save_pretrained(folder)
    return folder


def _config(shape: Preset, image_token_id: int) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
    )
    text = CONFIG_MAPPING[shape.decoder](
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.max_positions,
        rope_parameters=dict(shape.rope_parameters),
        attention_bias=shape.attention_bias,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        tie_word_embeddings=shape.tied,
    )


def _spread(model: nn.Module) -> None:
    """Scale weights to unit-variance signals and attention logits of a deviation near 3."""
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        if "embed_tokens" in name or name.endswith("class_embedding"):
            # Small, so that tied embeddings do not just repeat the last token.
            nn.init.normal_(parameter, std=0.3)
        elif "position_embedding" in name:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim > 1:
            gain = 1.7 if ("q_proj" in name or "k_proj" in name) else 1.0
            nn.init.normal_(parameter, std=gain * fan_in**-0.5)
        else:
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            nn.init.normal_(parameter, mean=center, std=0.1)


def _processor(shape: Preset) -> LlavaProcessor:
    side = shape.image_size
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=llama2_tokenizer() if shape.llama2_tokenizer else make_tokenizer(_CORPUS, vocab_size=400),
        patch_size=shape.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=shape.chat_template,
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


def llama2_tokenizer() -> PreTrainedTokenizerFast:
    """Llama-2's kind: words begin with ``▁``, characters that have no token are bytes (``<0xE7>``)."""
    trained = Tokenizer(models.BPE())
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.normalizer = spaces
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # no token spans two words
    trained.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            [tuple(merge) for merge in model["merges"]],
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


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """With BOS before a text, and the special tokens by name."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a random LLaVA checkpoint.")
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_checkpoint(arguments.folder, arguments.preset, seed=arguments.seed)
    print(arguments.folder)
