"""Short names of published checkpoints, with the settings the paper used for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """A published checkpoint.

    Attributes:
        hub_id: Repository on the Hugging Face hub.
        prune_layer: ``K``, decoder layers that run on the stage-1 tokens.
        budgets: Visual tokens per image that the paper evaluates (50, 20, 10 and 5 % of 576).
    """

    hub_id: str
    prune_layer: int
    budgets: tuple[int, ...] = (288, 115, 58, 29)


ALIASES = {
    "llava-1.5-7b": Alias("llava-hf/llava-1.5-7b-hf", prune_layer=14),
    "llava-1.5-13b": Alias("llava-hf/llava-1.5-13b-hf", prune_layer=18),
}
