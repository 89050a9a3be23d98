"""What is exported: the model's shape, its pruning, the cache capacities.

Frozen dataclasses of plain numbers, written to and read from the manifest as JSON.
"""

from star_export.dtypes import DType
from star_export.specs.export import (
    ExportSpec,
    LayerGroup,
    check_capacities,
    check_fp32_layers,
    check_proportional,
)
from star_export.specs.images import (
    ImageLimits,
    check_images,
    largest_request,
    picture_tokens,
    resolve_images,
    smallest_image,
)
from star_export.specs.model import FeatureSelect, ModelSpec, TextSpec, VisionSpec
from star_export.specs.pruning import (
    DEFAULT_DROP_RATIO,
    DEFAULT_KEEP,
    DEFAULT_TILED_KEEP,
    Keep,
    Schedule,
    Stage,
    check_keep,
    check_schedule,
    default_prune_layer,
    entering_tokens,
    resolve_star,
    spelled_keep,
    stage1_count,
    with_mass,
)
from star_export.specs.quantization import (
    BLOCKS,
    EMBEDDING,
    QUANTIZED_TYPES,
    Quantization,
    QuantizedType,
    resolve_quantization,
)
from star_export.specs.schedules import (
    BALANCED_PRESET,
    FAST_PRESET,
    STAR_PRESET,
    parse_schedule,
    resolve_schedule,
)
from star_export.specs.scores import RECEIVED, STAGE1_SCORES, STAGE2_SCORES, TEXT
from star_export.specs.tiling import Grid, Tiling, picture_grid
from star_export.specs.values import Side, TokenId

__all__ = [
    "BALANCED_PRESET",
    "BLOCKS",
    "DEFAULT_DROP_RATIO",
    "DEFAULT_KEEP",
    "DEFAULT_TILED_KEEP",
    "EMBEDDING",
    "FAST_PRESET",
    "QUANTIZED_TYPES",
    "RECEIVED",
    "STAGE1_SCORES",
    "STAGE2_SCORES",
    "STAR_PRESET",
    "TEXT",
    "DType",
    "ExportSpec",
    "FeatureSelect",
    "Grid",
    "ImageLimits",
    "Keep",
    "LayerGroup",
    "ModelSpec",
    "Quantization",
    "QuantizedType",
    "Schedule",
    "Side",
    "Stage",
    "TextSpec",
    "Tiling",
    "TokenId",
    "VisionSpec",
    "check_capacities",
    "check_fp32_layers",
    "check_images",
    "check_keep",
    "check_proportional",
    "check_schedule",
    "default_prune_layer",
    "entering_tokens",
    "largest_request",
    "parse_schedule",
    "picture_grid",
    "picture_tokens",
    "resolve_images",
    "resolve_quantization",
    "resolve_schedule",
    "resolve_star",
    "smallest_image",
    "spelled_keep",
    "stage1_count",
    "with_mass",
]
