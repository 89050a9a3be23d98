"""Small random LLaVA checkpoints in Hugging Face layout, for tests and benchmarks.

Weights are random but not tiny: attention is far from uniform, so that kept
tokens, caches and logits really depend on every part of the model.

Example:
    python -m star_export.testing.checkpoints mha OUT
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedTokenizerFast

from star_export.testing.processors import CHAT_TEMPLATE, CHATML, LLAMA3, MISTRAL, VICUNA, write_processor
from star_export.testing.sparse import write_zeros
from star_export.testing.tokenizers import TOKENIZERS

Rope = tuple[tuple[str, object], ...]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Shape of a checkpoint; see :data:`PRESETS`.

    Attributes:
        family: Hugging Face's name of the model's kind; the next two of the tower's and the decoder's.
        vision_intermediate: Width of the tower's MLP; four times its own by default.
        tokenizer: A key of :data:`~star_export.testing.tokenizers.TOKENIZERS`.
        grids: ``(rows, columns)`` of tiles that a picture may be cut into.
        max_grid: Tiles above which OneVision scales a grid down.
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
    family: str = "llava"
    tower: str = "clip_vision_model"
    decoder: str = "llama"
    vision_intermediate: int | None = None
    feature_layer: int | tuple[int, ...] = -2
    feature_select: str = "default"
    grids: tuple[tuple[int, int], ...] = ()
    max_grid: int = 9
    vocab: int = 512
    max_positions: int = 2048
    chat_template: str | None = None
    tokenizer: str = "bytes"
    rope_parameters: Rope = (("rope_type", "default"), ("rope_theta", 10000.0))
    sliding_window: int | None = None
    attention_bias: bool = False
    tied: bool = False
    dtype: torch.dtype = torch.float32
    shard_size: str = "200kB"


_LLAMA3_ROPE: Rope = (
    ("rope_type", "llama3"),
    ("rope_theta", 500000.0),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 256),
)


def _theta(theta: float) -> Rope:
    return (("rope_type", "default"), ("rope_theta", theta))


#: LLaVA-NeXT's own grids, and all of up to three by three tiles, as OneVision's are of up to six by six.
_NEXT_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
_THREE = tuple((rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3))
_SIX = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))

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
        hidden=64, intermediate=128, layers=3, heads=4, kv_heads=4, tokenizer="llama2",
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
    # Hidden states of several layers side by side, and one with CLS among the visual tokens.
    "feature-layers": Preset(
        image_size=56, patch_size=7, vision_hidden=32, vision_layers=4, vision_heads=2,
        hidden=64, intermediate=128, layers=3, heads=4, kv_heads=4, tokenizer="llama2",
        feature_layer=(-2, 0, 1),
    ),
    "full": Preset(
        image_size=56, patch_size=7, vision_hidden=32, vision_layers=3, vision_heads=2,
        hidden=64, intermediate=128, layers=3, heads=4, kv_heads=4, tokenizer="llama2",
        feature_select="full",
    ),
    # LLaVA-Interleave: SigLIP with its head size of 72, pixels over as in 384 / 14; Qwen2 with a tied head.
    "interleave": Preset(
        image_size=58, patch_size=7, vision_hidden=144, vision_layers=3, vision_heads=2,
        hidden=64, intermediate=128, layers=3, heads=4, kv_heads=4,
        tower="siglip_vision_model", feature_layer=-1, feature_select="full", decoder="qwen2",
        tokenizer="qwen2", chat_template=CHATML, rope_parameters=_theta(1e6), tied=True,
    ),
    # LLaVA-NeXT: 4x4 patches in a tile.
    "next": Preset(
        image_size=28, patch_size=7, vision_hidden=32, vision_layers=3, vision_heads=2,
        hidden=64, intermediate=128, layers=3, heads=4, kv_heads=4,
        family="llava_next", grids=_NEXT_GRIDS, tokenizer="llama2", chat_template=VICUNA,
    ),
    "next-mistral": Preset(
        image_size=28, patch_size=7, vision_hidden=32, vision_layers=3, vision_heads=2,
        hidden=64, intermediate=128, layers=3, heads=4, kv_heads=2, decoder="mistral",
        family="llava_next", grids=_NEXT_GRIDS, tokenizer="llama2", chat_template=MISTRAL,
        rope_parameters=_theta(1e6), sliding_window=1536,
    ),
    "next-llama3": Preset(
        image_size=28, patch_size=7, vision_hidden=32, vision_layers=3, vision_heads=2,
        hidden=64, intermediate=128, layers=3, heads=4, kv_heads=2,
        family="llava_next", grids=_NEXT_GRIDS, tokenizer="llama3", chat_template=LLAMA3,
        rope_parameters=_theta(5e5),
    ),
    # LLaVA-OneVision: 5x5 patches in a tile; grids of more than three tiles are scaled down.
    "onevision": Preset(
        image_size=36, patch_size=7, vision_hidden=144, vision_layers=3, vision_heads=2,
        hidden=64, intermediate=128, layers=3, heads=4, kv_heads=2,
        family="llava_onevision", tower="siglip_vision_model", feature_layer=-1, feature_select="full",
        decoder="qwen2", grids=_THREE, max_grid=3, tokenizer="qwen2", chat_template=CHATML,
        rope_parameters=_theta(1e6), tied=True,
    ),
    # LLaVA-OneVision-0.5B's own shape: 0.9 B parameters, 0.5 B of them the decoder.
    "bench-onevision": Preset(
        image_size=384, patch_size=14, vision_hidden=1152, vision_layers=26, vision_heads=16,
        vision_intermediate=4304, hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2,
        family="llava_onevision", tower="siglip_vision_model", feature_layer=-1, feature_select="full",
        decoder="qwen2", grids=_SIX, tokenizer="qwen2", chat_template=CHATML, rope_parameters=_theta(1e6),
        tied=True, vocab=151936, max_positions=32768, dtype=torch.float16, shard_size="1GB",
    ),
    # LLaVA-1.5-7B's and 13B's own shapes; to be written with zeros.
    "1.5-7b": Preset(
        image_size=336, patch_size=14, vision_hidden=1024, vision_layers=24, vision_heads=16,
        hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, tokenizer="llama2",
        vocab=32064, max_positions=4096, dtype=torch.float16,
    ),
    "1.5-13b": Preset(
        image_size=336, patch_size=14, vision_hidden=1024, vision_layers=24, vision_heads=16,
        hidden=5120, intermediate=13824, layers=40, heads=40, kv_heads=40, tokenizer="llama2",
        vocab=32064, max_positions=4096, dtype=torch.float16,
    ),
    # LLaVA-v1.6-Mistral-7B's own shape: 7.6 B parameters; to be written with zeros.
    "v1.6-mistral-7b": Preset(
        image_size=336, patch_size=14, vision_hidden=1024, vision_layers=24, vision_heads=16,
        hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, decoder="mistral",
        family="llava_next", grids=_NEXT_GRIDS, tokenizer="llama2", chat_template=MISTRAL,
        rope_parameters=_theta(1e6), vocab=32064, max_positions=32768, dtype=torch.float16,
    ),
}  # fmt: skip


def make_checkpoint(folder: Path, preset: str | Preset, *, seed: int = 0, zeros: bool = False) -> Path:
    """Write a random checkpoint: config, sharded safetensors, tokenizer, processor.

    Args:
        folder: Folder to fill; made when missing.
        preset: A name from :data:`PRESETS`, or a shape of your own.
        seed: Seed of the weights.
        zeros: Whether the weights are zeros that take no room on the disk.

    Returns:
        ``folder``.
    """
    shape = PRESETS[preset] if isinstance(preset, str) else preset
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = TOKENIZERS[shape.tokenizer]()
    config = _config(shape, tokenizer)
    write_processor(folder, config, tokenizer, shape.chat_template)
    if zeros:
        with torch.device("meta"):
            model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
        config.save_pretrained(folder)
        write_zeros(folder / "model.safetensors", model, shape.dtype)
        return folder
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
    _spread(model)
    torch.set_rng_state(before)
    model.to(shape.dtype).save_pretrained(folder, max_shard_size=shape.shard_size)
    return folder


def _config(shape: Preset, tokenizer: PreTrainedTokenizerFast) -> Any:
    vision = CONFIG_MAPPING[shape.tower](
        hidden_size=shape.vision_hidden,
        intermediate_size=shape.vision_intermediate or 4 * shape.vision_hidden,
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
        tie_word_embeddings=shape.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **_of_one_kind(shape),
    )
    tiling: dict[str, Any] = {}
    if shape.grids:
        side = shape.image_size
        tiling["image_grid_pinpoints"] = [[rows * side, columns * side] for rows, columns in shape.grids]
    if shape.family == "llava_onevision":
        tiling["vision_aspect_ratio"] = f"anyres_max_{shape.max_grid}"
        tiling["video_token_index"] = tokenizer.convert_tokens_to_ids("<video>")
    layers = shape.feature_layer
    return CONFIG_MAPPING[shape.family](
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=shape.tied,
        vision_feature_layer=list(layers) if isinstance(layers, tuple) else layers,
        vision_feature_select_strategy=shape.feature_select,
        **tiling,
    )


def _of_one_kind(shape: Preset) -> dict[str, Any]:
    """What a decoder's config has that others have not."""
    if shape.decoder == "llama":
        return {"attention_bias": shape.attention_bias}
    return {"sliding_window": shape.sliding_window} if shape.decoder == "mistral" else {}


def _spread(model: nn.Module) -> None:
    """Scale weights to unit-variance signals and attention logits of a deviation near 3."""
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        if "embed_tokens" in name or name.endswith("class_embedding"):
            # Small, so that tied embeddings do not just repeat the last token.
            nn.init.normal_(parameter, std=0.3)
        elif "position_embedding" in name or name.endswith("image_newline"):
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim > 1:
            gain = 1.7 if ("q_proj" in name or "k_proj" in name) else 1.0
            nn.init.normal_(parameter, std=gain * fan_in**-0.5)
        else:
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            nn.init.normal_(parameter, mean=center, std=0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a random LLaVA checkpoint.")
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zeros", action="store_true", help="Weights that take no room on the disk.")
    arguments = parser.parse_args()
    make_checkpoint(arguments.folder, arguments.preset, seed=arguments.seed, zeros=arguments.zeros)
    print(arguments.folder)
