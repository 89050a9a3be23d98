"""What may be asked of a model, in plain values: for clients, and for a front door on another machine."""

from dataclasses import dataclass

from star_export.specs import ExportSpec


@dataclass(frozen=True)
class StageCard:
    """One stage of pruning.

    Attributes:
        name: What users call it: stage 1 is the one before the decoder.
        after_layer: Decoder layers before it.
        score: What it ranks visual tokens by.
        keep: Visual tokens that it keeps by default.
        max_keep: Visual tokens that it can be asked to keep.
    """

    name: str
    after_layer: int
    score: str
    keep: int
    max_keep: int


@dataclass(frozen=True)
class Card:
    """What a bundle takes.

    Attributes:
        stages: Where it drops visual tokens, in their order.
        max_images: Pictures that a request may hold.
        max_new_tokens: Tokens that an answer may have.
    """

    stages: tuple[StageCard, ...]
    max_images: int
    max_new_tokens: int

    @classmethod
    def of(cls, spec: ExportSpec) -> "Card":
        """From a bundle's spec."""
        first = 1 if spec.stage1 else 2
        stages = tuple(
            StageCard(f"stage {number}", stage.after_layer, stage.score, stage.tokens, stage.max_tokens)
            for number, stage in enumerate(spec.schedule, first)
        )
        return cls(stages, spec.images.max_images, spec.max_new_tokens)
