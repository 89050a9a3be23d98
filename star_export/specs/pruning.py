"""Which visual tokens stay, and where: the settings of STAR and all arithmetic of its budgets.

Source: arXiv 2505.12359, section 3.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from star_export.errors import SettingsError, option
from star_export.specs.model import ModelSpec
from star_export.specs.values import Count, Layers

DEFAULT_KEEP = 64
DEFAULT_DROP_RATIO = 0.1
DEFAULT_PRUNE_FRACTION = 0.4375  # 14 of LLaVA-1.5-7B's 32 layers


@dataclass(frozen=True, kw_only=True)
class StarSpec:
    """STAR's settings for one model.

    Attributes:
        drop_ratio: ``R``, the share of patches that stage 1 drops.
        stage1_keep: ``N1 = floor((1-R)*P + 0.5)``, patches left after stage 1.
        prune_layer: ``K``, decoder layers that run on the stage-1 tokens.
        keep: ``N2``, visual tokens left after stage 2 unless asked otherwise.
        max_keep: Largest ``N2`` the late KV cache has room for.
    """

    drop_ratio: Annotated[float, Meta(ge=0, lt=1)]
    stage1_keep: Count
    prune_layer: Layers
    keep: Count
    max_keep: Count


def stage1_count(*, patches: int, drop_ratio: float) -> int:
    """``N1 = floor((1-R)*P + 0.5)``: patches kept by stage 1.

    Raises:
        SettingsError: If ``drop_ratio`` is not in [0, 1).
    """
    if not 0.0 <= drop_ratio < 1.0:
        raise SettingsError(
            f"{option('drop_ratio')} must be at least 0 and below 1, got {drop_ratio:g}; "
            f"the paper's value is {DEFAULT_DROP_RATIO}"
        )
    return math.floor((1.0 - drop_ratio) * patches + 0.5)


def default_prune_layer(num_layers: int) -> int:
    """``K`` for a decoder of ``num_layers``: 14 of 32, in proportion for other depths."""
    return max(1, math.floor(DEFAULT_PRUNE_FRACTION * num_layers + 0.5))


def resolve_star(
    model: ModelSpec,
    *,
    keep: int | None = None,
    keep_ratio: float | None = None,
    drop_ratio: float = DEFAULT_DROP_RATIO,
    prune_layer: int | None = None,
    max_keep: int | None = None,
) -> StarSpec:
    """Turn the user's options into checked STAR settings.

    Args:
        model: The model to prune.
        keep: Visual tokens left after stage 2; 64 when neither form is given.
        keep_ratio: The same as a share of all patches, in (0, 1).
        drop_ratio: Share of patches dropped by stage 1.
        prune_layer: ``K``; by default 0.4375 of the decoder's layers.
        max_keep: Largest budget the caches get room for; ``keep`` by default.

    Raises:
        SettingsError: If a value is out of range or the two stages contradict each other.
    """
    patches = model.vision.num_patches
    if keep is not None and keep_ratio is not None:
        raise SettingsError(f"give either {option('keep')} or {option('keep_ratio')}, not both")
    if keep_ratio is not None:
        if not 0.0 < keep_ratio < 1.0:
            raise SettingsError(f"{option('keep_ratio')} must be between 0 and 1, got {keep_ratio:g}")
        keep = math.floor(keep_ratio * patches + 0.5)
    stage1 = stage1_count(patches=patches, drop_ratio=drop_ratio)
    if stage1 < 2:
        raise SettingsError(
            f"{option('drop_ratio', f'{drop_ratio:g}')} leaves {stage1} of {patches} patches; lower it"
        )
    wanted = DEFAULT_KEEP if keep is None else keep
    layers = model.text.num_layers
    layer = default_prune_layer(layers) if prune_layer is None else prune_layer
    if layers < 2:
        raise SettingsError(f"a decoder of one layer cannot be pruned inside; use {option('prune', False)}")
    if not 1 <= layer < layers:
        raise SettingsError(
            f"{option('prune_layer')} must be from 1 to {layers - 1} for this {layers}-layer decoder, "
            f"got {layer}"
        )
    ceiling = wanted if max_keep is None else max_keep
    star = StarSpec(
        drop_ratio=drop_ratio,
        stage1_keep=stage1,
        prune_layer=layer,
        keep=wanted,
        max_keep=ceiling,
    )
    check_keep(star, ceiling, name="max_keep" if max_keep is not None else "keep")
    check_keep(star, wanted)
    return star


def check_keep(star: StarSpec, keep: int, *, name: str = "keep") -> None:
    """Refuse a budget that the method or the bundle's caches cannot serve.

    Raises:
        SettingsError: If ``keep`` is not in ``[1, N1)`` or above ``max_keep``.
    """
    if keep < 1:
        raise SettingsError(f"{option(name)} must be at least 1 visual token, got {keep}")
    if keep >= star.stage1_keep:
        raise SettingsError(
            f"{option(name, keep)} is not below the {star.stage1_keep} tokens that stage 1 keeps; "
            f"choose at most {star.stage1_keep - 1}, lower {option('drop_ratio')}, "
            f"or use {option('prune', False)}"
        )
    if keep > star.max_keep:
        raise SettingsError(
            f"{option(name, keep)} is over this bundle's maximum of {star.max_keep}; "
            f"build it again with {option('max_keep', keep)}"
        )
