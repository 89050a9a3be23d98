"""The names of the scores that rank visual tokens; `star_export.graphs.scores` computes them."""

import difflib

from star_export.errors import SettingsError, option
from star_export.specs.model import ModelSpec

RECEIVED, CLS, SPREAD, PEAKS = "received", "cls", "spread", "peaks"
TEXT, LAST, RATERS, VISUAL_HEADS, TEXT_PEAKS = "text", "last", "raters", "visual-heads", "text-peaks"
DRIFT, KEY_NORM = "drift", "key-norm"

#: Scores before the decoder, each with what it keeps. The first is STAR's.
STAGE1_SCORES = {
    RECEIVED: "patches that the others look at",
    CLS: "patches that CLS looks at",
    SPREAD: "patches unlike any of a larger norm",
    PEAKS: "patches unlike any that receives more attention, and looked at themselves",
}

#: Scores inside the decoder, each with what it keeps. The first is STAR's.
STAGE2_SCORES = {
    TEXT: "what the question looks at",
    LAST: "what its last token looks at",
    RATERS: "what those of its tokens look at that look at pictures most",
    VISUAL_HEADS: "what it looks at with the heads that look at pictures most",
    TEXT_PEAKS: "what it looks at, unlike any that it looks at more",
    DRIFT: "what a layer changes most",
    KEY_NORM: "what has short keys",
}


def check_score(after_layer: int, score: str, model: ModelSpec) -> None:
    """Refuse a score that does not exist at a place, or that the model has nothing for.

    Args:
        after_layer: Decoder layers that run before the stage; 0 is before the decoder.
        score: Its name.
        model: The model.

    Raises:
        SettingsError: With the nearest name.
    """
    name, scores = ("stage2", STAGE2_SCORES) if after_layer else ("stage1", STAGE1_SCORES)
    if score not in scores:
        near = difflib.get_close_matches(score, scores, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError(
            f"{option(name, score)} is no score of this stage; {hint}scores are {', '.join(scores)}"
        )
    if score == CLS and not model.vision.has_cls:
        others = ", ".join(other for other in scores if other != CLS)
        raise SettingsError(
            f"{option(name, score)} needs a class token, and {model.vision.model_type} has none; use {others}"
        )
