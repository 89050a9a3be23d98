"""What is exported: the model's shape, STAR's settings, the cache capacities.

Frozen dataclasses of plain numbers, written to and read from the manifest as
JSON. All arithmetic of the STAR budgets (arXiv 2505.12359, section 3) is here.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from msgspec import Meta

from star_export.errors import SettingsError

DType = Literal["float32", "float16", "bfloat16"]

# What a manifest may hold; upper bounds are far above any model, and below what exhausts memory.
Count = Annotated[int, Meta(ge=1, le=1 << 31)]
Layers = Annotated[int, Meta(ge=1, le=1024)]
Side = Annotated[int, Meta(ge=1, le=1 << 14)]
TokenId = Annotated[int, Meta(ge=0, le=1 << 31)]
Epsilon = Annotated[float, Meta(gt=0, lt=1)]

#: Bytes of one element.
DTYPE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}

DEFAULT_KEEP = 64
DEFAULT_DROP_RATIO = 0.1
DEFAULT_PRUNE_FRACTION = 0.4375  # 14 of LLaVA-1.5-7B's 32 layers


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """A CLIP vision tower up to the layer whose output LLaVA uses.

    Attributes:
        num_layers: Layers that are exported; the last one's attention map scores stage 1.
    """

    image_size: Side
    patch_size: Side
    hidden_size: Count
    intermediate_size: Count
    num_layers: Layers
    num_heads: Count
    hidden_act: str
    layer_norm_eps: Epsilon

    @property
    def num_patches(self) -> int:
        """Patches of one image, without CLS (``P``; 576 for LLaVA-1.5)."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """A Llama decoder, with or without grouped-query attention."""

    hidden_size: Count
    intermediate_size: Count
    num_layers: Layers
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Count
    hidden_act: str
    rms_norm_eps: Epsilon
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    max_position_embeddings: Count
    rope_parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One LLaVA model: vision tower, two-layer projector, decoder."""

    vision: VisionSpec
    text: TextSpec
    projector_act: str
    projector_bias: bool
    image_token_id: TokenId
    eos_token_ids: tuple[TokenId, ...]


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


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """Everything the three graphs depend on.

    Attributes:
        model: Shape of the model.
        star: Pruning settings, or None for the unpruned baseline.
        max_text_tokens: Prompt tokens that are not image tokens, at most.
        max_new_tokens: Tokens generated after the prompt, at most.
        dtype: Element type of weights, activations and KV caches.
        fp32_layers: Names and patterns of modules that stay in float32; see :meth:`weight_dtype`.
    """

    model: ModelSpec
    star: StarSpec | None
    max_text_tokens: Count
    max_new_tokens: Count
    dtype: DType
    fp32_layers: tuple[str, ...] = ()  # absent before there was bfloat16

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one image when the decoder starts: ``N1``, or ``P`` unpruned."""
        return self.star.stage1_keep if self.star else self.model.vision.num_patches

    @property
    def num_early_layers(self) -> int:
        """Decoder layers that see every stage-1 token (``K``; all of them unpruned)."""
        return self.star.prune_layer if self.star else self.model.text.num_layers

    @property
    def early_capacity(self) -> int:
        """Tokens each early layer's KV cache has room for."""
        return self.image_tokens + self.max_text_tokens + self.max_new_tokens

    @property
    def late_capacity(self) -> int:
        """Tokens each late layer's KV cache has room for (0 when unpruned)."""
        if self.star is None:
            return 0
        return self.star.max_keep + self.max_text_tokens + self.max_new_tokens

    def cache_capacity(self, layer: int) -> int:
        """Tokens the KV cache of decoder layer ``layer`` has room for."""
        return self.early_capacity if layer < self.num_early_layers else self.late_capacity

    def kv_bytes(self, tokens: int, layers: int) -> int:
        """Bytes that ``tokens`` cached tokens take in ``layers`` decoder layers."""
        text = self.model.text
        return 2 * tokens * layers * text.num_kv_heads * text.head_dim * DTYPE_BYTES[self.dtype]

    def sequence_bytes(self, early: int, late: int) -> int:
        """Bytes of one sequence: ``early`` cached tokens in every early layer, ``late`` in every late one."""
        layers = self.num_early_layers
        return self.kv_bytes(early, layers) + self.kv_bytes(late, self.model.text.num_layers - layers)

    @property
    def slot_bytes(self) -> int:
        """Bytes of the KV caches that are allocated for one sequence."""
        return self.sequence_bytes(self.early_capacity, self.late_capacity)

    def weight_dtype(self, tensor: str) -> DType:
        """Element type in which the weight called ``tensor`` is stored and used.

        A name in ``fp32_layers`` stands for a module with all below it, a pattern for every
        module whose whole name matches; ``*`` matches dots too.
        """
        module, _, _ = tensor.rpartition(".")
        return "float32" if _named(module, self.fp32_layers) else self.dtype

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :func:`star_export.typed.convert` reads them back."""
        return asdict(self)


def _named(module: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches ``module`` or a module it is in."""
    parts = module.split(".")
    names = [".".join(parts[: count + 1]) for count in range(len(parts))]
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def check_fp32_layers(spec: ExportSpec, modules: Iterable[str]) -> None:
    """Refuse names that are no part of the exported model.

    Args:
        spec: Settings with ``fp32_layers``.
        modules: Name of every module that has weights.

    Raises:
        SettingsError: With the nearest name, or if the whole bundle is float32.
    """
    if spec.fp32_layers and spec.dtype == "float32":
        raise SettingsError("--fp32-layers has no meaning with --dtype float32; leave one of them out")
    names = sorted({".".join(m.split(".")[: n + 1]) for m in modules for n in range(m.count(".") + 1)})
    for pattern in spec.fp32_layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            tops = ", ".join(name for name in names if "." not in name)
            raise SettingsError(
                f"--fp32-layers {pattern} names nothing in this bundle; {hint}"
                f"names are those of the checkpoint's modules and begin with {tops}"
            )


def stage1_count(*, patches: int, drop_ratio: float) -> int:
    """``N1 = floor((1-R)*P + 0.5)``: patches kept by stage 1.

    Raises:
        SettingsError: If ``drop_ratio`` is not in [0, 1).
    """
    if not 0.0 <= drop_ratio < 1.0:
        raise SettingsError(
            f"--drop-ratio must be at least 0 and below 1, got {drop_ratio:g}; "
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
        raise SettingsError("give either --keep or --keep-ratio, not both")
    if keep_ratio is not None:
        if not 0.0 < keep_ratio < 1.0:
            raise SettingsError(f"--keep-ratio must be between 0 and 1, got {keep_ratio:g}")
        keep = math.floor(keep_ratio * patches + 0.5)
    stage1 = stage1_count(patches=patches, drop_ratio=drop_ratio)
    if stage1 < 2:
        raise SettingsError(f"--drop-ratio {drop_ratio:g} leaves {stage1} of {patches} patches; lower it")
    wanted = DEFAULT_KEEP if keep is None else keep
    layers = model.text.num_layers
    layer = default_prune_layer(layers) if prune_layer is None else prune_layer
    if layers < 2:
        raise SettingsError("a decoder of one layer cannot be pruned inside; use --no-prune")
    if not 1 <= layer < layers:
        raise SettingsError(
            f"--prune-layer must be from 1 to {layers - 1} for this {layers}-layer decoder, got {layer}"
        )
    ceiling = wanted if max_keep is None else max_keep
    star = StarSpec(
        drop_ratio=drop_ratio,
        stage1_keep=stage1,
        prune_layer=layer,
        keep=wanted,
        max_keep=ceiling,
    )
    check_keep(star, ceiling, option="--max-keep" if max_keep is not None else "--keep")
    check_keep(star, wanted)
    return star


def check_keep(star: StarSpec, keep: int, *, option: str = "--keep") -> None:
    """Refuse a budget that the method or the bundle's caches cannot serve.

    Raises:
        SettingsError: If ``keep`` is not in ``[1, N1)`` or above ``max_keep``.
    """
    if keep < 1:
        raise SettingsError(f"{option} must be at least 1 visual token, got {keep}")
    if keep >= star.stage1_keep:
        raise SettingsError(
            f"{option} {keep} is not below the {star.stage1_keep} tokens that stage 1 keeps; "
            f"choose at most {star.stage1_keep - 1}, lower --drop-ratio, or use --no-prune"
        )
    if keep > star.max_keep:
        raise SettingsError(
            f"{option} {keep} is over this bundle's maximum of {star.max_keep}; "
            f"build it again with --max-keep {keep}"
        )


def check_capacities(spec: ExportSpec) -> None:
    """Refuse caches that the decoder's position range cannot address.

    Raises:
        SettingsError: If a count is below 1 or the sum is over ``max_position_embeddings``.
    """
    for option, value in (
        ("--max-text-tokens", spec.max_text_tokens),
        ("--max-new-tokens", spec.max_new_tokens),
    ):
        if value < 1:
            raise SettingsError(f"{option} must be at least 1, got {value}")
    limit = spec.model.text.max_position_embeddings
    if spec.early_capacity > limit:
        raise SettingsError(
            f"{spec.image_tokens} image + {spec.max_text_tokens} text + {spec.max_new_tokens} new "
            f"tokens are {spec.early_capacity}, over the model's {limit} positions; "
            "lower --max-text-tokens or --max-new-tokens"
        )
