"""Shapes of published models, without their weights."""

from dataclasses import replace

from star_export.checkpoint.published import SHAPES

#: Modules of `mha` in float32, of the one bundle of mixed element types that tests share.
WIDE = (
    "language_model.layers.1",
    "language_model.layers.4.mlp",
    "vision_tower.encoder.layers.0",
    "lm_head",
)

NEXT, ONEVISION = SHAPES["llava-v1.6-mistral-7b"], SHAPES["llava-onevision-qwen2-0.5b"]
WHOLE = replace(NEXT, model_type="llava", tiling=None)
