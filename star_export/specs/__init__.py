"""What is exported: the model's shape, its pruning, the cache capacities.

Frozen dataclasses of plain numbers, written to and read from the manifest as JSON.
"""

from star_export.dtypes import DType
from star_export.specs.export import ExportSpec, LayerGroup, check_capacities, check_fp32_layers
from star_export.specs.model import ModelSpec, TextSpec, VisionSpec
from star_export.specs.pruning import (
    DEFAULT_DROP_RATIO,
    DEFAULT_KEEP,
    RECEIVED,
    TEXT,
    Schedule,
    Stage,
    check_keep,
    check_schedule,
    default_prune_layer,
    resolve_star,
    stage1_count,
)
from star_export.specs.values import Side, TokenId

__all__ = [
    "DEFAULT_DROP_RATIO",
    "DEFAULT_KEEP",
    "RECEIVED",
    "TEXT",
    "DType",
    "ExportSpec",
    "LayerGroup",
    "ModelSpec",
    "Schedule",
    "Side",
    "Stage",
    "TextSpec",
    "TokenId",
    "VisionSpec",
    "check_capacities",
    "check_fp32_layers",
    "check_keep",
    "check_schedule",
    "default_prune_layer",
    "resolve_star",
    "stage1_count",
]
