"""Short names of published checkpoints, with the settings that papers used for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """A published checkpoint.

    Attributes:
        hub_id: Repository on the Hugging Face hub.
        prune_layer: ``K``, decoder layers that run on the stage-1 tokens; None where no paper says it.
        budgets: Visual tokens per picture that papers evaluate.
    """

    hub_id: str
    prune_layer: int | None = None
    budgets: tuple[int, ...] = ()


_WHOLE = (288, 115, 58, 29)  # 50, 20, 10 and 5 % of 576
_TILED = (640, 320, 160)

ALIASES = {
    "llava-1.5-7b": Alias("llava-hf/llava-1.5-7b-hf", prune_layer=14, budgets=_WHOLE),
    "llava-1.5-13b": Alias("llava-hf/llava-1.5-13b-hf", prune_layer=18, budgets=_WHOLE),
    "llava-v1.6-vicuna-7b": Alias("llava-hf/llava-v1.6-vicuna-7b-hf", budgets=_TILED),
    "llava-v1.6-vicuna-13b": Alias("llava-hf/llava-v1.6-vicuna-13b-hf", budgets=_TILED),
    "llava-v1.6-mistral-7b": Alias("llava-hf/llava-v1.6-mistral-7b-hf", budgets=_TILED),
    "llava-v1.6-34b": Alias("llava-hf/llava-v1.6-34b-hf", budgets=_TILED),
    "llama3-llava-next-8b": Alias("llava-hf/llama3-llava-next-8b-hf", budgets=_TILED),
    "llava-interleave-qwen-0.5b": Alias("llava-hf/llava-interleave-qwen-0.5b-hf"),
    "llava-interleave-qwen-7b": Alias("llava-hf/llava-interleave-qwen-7b-hf"),
    "llava-onevision-qwen2-0.5b": Alias("llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
    "llava-onevision-qwen2-7b": Alias("llava-hf/llava-onevision-qwen2-7b-ov-hf"),
}
