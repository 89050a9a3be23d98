"""Everything the three graphs depend on: the model, its pruning, the cache capacities, element types."""

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from star_export.dtypes import DTYPE_BYTES, DType
from star_export.errors import SettingsError, option
from star_export.specs.model import ModelSpec
from star_export.specs.pruning import StarSpec
from star_export.specs.values import Count


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
        raise SettingsError(
            f"{option('fp32_layers')} has no meaning with {option('dtype', 'float32')}; leave one of them out"
        )
    names = sorted({".".join(m.split(".")[: n + 1]) for m in modules for n in range(m.count(".") + 1)})
    for pattern in spec.fp32_layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            tops = ", ".join(name for name in names if "." not in name)
            raise SettingsError(
                f"{option('fp32_layers', pattern)} names nothing in this bundle; {hint}"
                f"names are those of the checkpoint's modules and begin with {tops}"
            )


def check_capacities(spec: ExportSpec) -> None:
    """Refuse caches that the decoder's position range cannot address.

    Raises:
        SettingsError: If a count is below 1 or the sum is over ``max_position_embeddings``.
    """
    for name, value in (
        ("max_text_tokens", spec.max_text_tokens),
        ("max_new_tokens", spec.max_new_tokens),
    ):
        if value < 1:
            raise SettingsError(f"{option(name)} must be at least 1, got {value}")
    limit = spec.model.text.max_position_embeddings
    if spec.early_capacity > limit:
        raise SettingsError(
            f"{spec.image_tokens} image + {spec.max_text_tokens} text + {spec.max_new_tokens} new "
            f"tokens are {spec.early_capacity}, over the model's {limit} positions; "
            f"lower {option('max_text_tokens')} or {option('max_new_tokens')}"
        )
