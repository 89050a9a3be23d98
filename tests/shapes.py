"""Shapes of published models, without their weights."""

from star_export.checkpoint.published import SHAPES

NEXT, ONEVISION = SHAPES["llava-v1.6-mistral-7b"], SHAPES["llava-onevision-qwen2-0.5b"]
