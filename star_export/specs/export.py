"""Everything the three graphs depend on: the model, its pruning, the cache capacities, element types."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate
from typing import Any

from star_export.dtypes import DTYPES, DType
from star_export.errors import SettingsError, option
from star_export.specs.images import ImageLimits, largest_request
from star_export.specs.model import ModelSpec
from star_export.specs.pruning import Keep, Schedule, Stage, entering_tokens, share_of
from star_export.specs.quantization import EMBEDDING, Quantization, QuantizedType
from star_export.specs.values import Count


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Decoder layers that see the same tokens, so that their KV caches have one length.

    Attributes:
        first: Its first layer, from 0.
        last: Its last layer, which belongs to it.
        capacity: Tokens that each layer's KV cache has room for.
    """

    first: int
    last: int
    capacity: int

    @property
    def layers(self) -> range:
        """The numbers of its layers."""
        return range(self.first, self.last + 1)


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """Everything the three graphs depend on.

    Attributes:
        model: Shape of the model.
        schedule: Where visual tokens are dropped; empty for the unpruned baseline.
        images: The pictures that a request may hold.
        max_text_tokens: Prompt tokens that are not image tokens, at most.
        max_new_tokens: Tokens generated after the prompt, at most.
        append_tokens: Tokens that one run of decode appends to a sequence, at most.
        dtype: Element type of weights, activations and KV caches.
        fp32_layers: Names and patterns of modules that stay in float32; see :meth:`weight_dtype`.
        quantization: Which weights are stored in few bits; none without it.
        fixed_capacities: Whether KV caches have their groups' capacity in the graphs, as in old bundles.
        proportional: Whether attention counts a kept visual token as often as it stands for a dropped one.
    """

    model: ModelSpec
    schedule: Schedule
    images: ImageLimits
    max_text_tokens: Count
    max_new_tokens: Count
    append_tokens: Count
    dtype: DType
    fp32_layers: tuple[str, ...] = ()  # absent before there was bfloat16
    proportional: bool = False  # absent before there was such a thing
    quantization: Quantization | None = None  # absent before weights could be quantised
    fixed_capacities: bool = False  # true before format 5

    @property
    def stage1(self) -> Stage | None:
        """The stage before the decoder."""
        return self.schedule[0] if self.schedule and self.schedule[0].after_layer == 0 else None

    @property
    def decoder_stages(self) -> Schedule:
        """The stages inside the decoder; each ends a layer group."""
        return tuple(stage for stage in self.schedule if stage.after_layer)

    @property
    def adapts(self) -> bool:
        """Whether the last stage keeps fewer tokens than it may, as their scores are."""
        return bool(self.schedule) and self.schedule[-1].mass is not None

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one picture when the decoder starts, of the largest where they differ.

        ``N1``, or ``P`` without a stage before the decoder.
        """
        return self.stage1.tokens if self.stage1 else self.largest_image

    @cached_property
    def largest_image(self) -> int:
        """Visual tokens of one picture before any is pruned, of the largest where they differ."""
        return self._largest(1)

    @cached_property
    def max_visual_tokens(self) -> int:
        """Visual tokens of a request when the decoder starts, at most."""
        return self.stage1.max_tokens if self.stage1 else self._largest(self.images.max_images)

    def _largest(self, max_images: int) -> int:
        images = replace(self.images, max_images=max_images)
        return largest_request(self.model, images, lambda tokens, _newlines: tokens)

    @cached_property
    def max_dropped(self) -> int:
        """Visual tokens that the stage before the decoder drops of one picture, at most."""
        images = replace(self.images, max_images=1)
        return largest_request(self.model, images, lambda tokens, rows: tokens - self.entering(tokens, rows))

    def entering(self, tokens: int, newlines: int = 0, keep: Keep | None = None) -> int:
        """Visual tokens of one picture when the decoder starts; see :func:`entering_tokens`."""
        if self.stage1 is None:
            return tokens
        stage, asked = self.stage1, self.asked(keep)[0]
        if asked == stage.tokens:
            return entering_tokens(stage, tokens, newlines)
        return min(asked, tokens if stage.share is None else tokens - 1)

    def asked(self, keep: Keep | None, image_tokens: int | None = None) -> tuple[int, ...]:
        """Budgets of every stage: those that ``keep`` asks for, and the bundle's own.

        Args:
            keep: Of the last stage, or of every one.
            image_tokens: Visual tokens of the request before any is pruned; by default of the largest.
        """
        own = tuple(
            share_of(stage.share, image_tokens)
            if image_tokens and stage.share and stage.after_layer
            else stage.tokens
            for stage in self.schedule
        )
        if keep is None or not own:
            return own
        return keep if isinstance(keep, tuple) else (*own[:-1], keep)

    @property
    def keep(self) -> int:
        """Visual tokens of a request in the last layers, unless asked otherwise; of the largest request."""
        return self.schedule[-1].tokens if self.schedule else self.max_visual_tokens

    @property
    def room(self) -> int:
        """Tokens of text and answer that KV caches may have room for, besides the visual ones."""
        return self.max_text_tokens + self.max_new_tokens

    @cached_property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The decoder's layers: one group, and one more for each stage inside the decoder."""
        firsts = [0, *(stage.after_layer for stage in self.decoder_stages), self.model.text.num_layers]
        tokens = [self.max_visual_tokens, *(stage.max_tokens for stage in self.decoder_stages)]
        return tuple(
            LayerGroup(first=first, last=end - 1, capacity=visual + self.room)
            for first, end, visual in zip(firsts[:-1], firsts[1:], tokens, strict=True)
        )

    @property
    def capacities(self) -> tuple[int, ...]:
        """Tokens of a sequence that each group's caches may have room for, at most."""
        return tuple(group.capacity for group in self.groups)

    def capacities_with(self, room: int) -> tuple[int, ...]:
        """The same of caches with room for ``room`` tokens of text and answer."""
        return tuple(capacity - self.room + room for capacity in self.capacities)

    def budgets(self, keep: Keep | None = None, *, entering: int | None = None) -> tuple[int, ...]:
        """Visual tokens that each stage inside the decoder keeps.

        Args:
            keep: Budgets, instead of the bundle's own.
            entering: Visual tokens of the request when the decoder starts: no stage keeps more.
        """
        tokens = self.asked(keep)[len(self.schedule) - len(self.decoder_stages) :]
        return tuple(accumulate(tokens if entering is None else [min(entering, n) for n in tokens], min))

    def lengths(self, text_tokens: int, image_tokens: int, keep: Keep | None = None) -> tuple[int, ...]:
        """Tokens in each group's caches after a prompt: all in the first, in the others what a stage kept.

        Args:
            text_tokens: Tokens that are not visual.
            image_tokens: Visual tokens when the decoder starts.
            keep: See :meth:`budgets`.
        """
        kept = self.budgets(keep, entering=image_tokens)
        return tuple(text_tokens + visual for visual in (image_tokens, *kept))

    def group(self, layer: int) -> int:
        """Number of the group that decoder layer ``layer`` belongs to."""
        return sum(stage.after_layer <= layer for stage in self.decoder_stages)

    def cache_capacity(self, layer: int) -> int:
        """Tokens the KV cache of decoder layer ``layer`` has room for."""
        return self.groups[self.group(layer)].capacity

    def kv_bytes(self, tokens: int, layers: int) -> int:
        """Bytes that ``tokens`` cached tokens take in ``layers`` decoder layers."""
        text = self.model.text
        return 2 * tokens * layers * text.num_kv_heads * text.head_dim * DTYPES[self.dtype].itemsize

    def sequence_bytes(self, lengths: Sequence[int]) -> int:
        """Bytes of one sequence with ``lengths [groups]`` tokens in each group's caches."""
        pairs = zip(self.groups, lengths, strict=True)
        return sum(self.kv_bytes(length, len(group.layers)) for group, length in pairs)

    @property
    def slot_bytes(self) -> int:
        """Bytes of KV caches with room for the longest sequence."""
        return self.sequence_bytes(self.capacities)

    def weight_dtype(self, tensor: str) -> DType:
        """Element type in which the weight called ``tensor`` is stored and used.

        A name in ``fp32_layers`` stands for a module with all below it, a pattern for every
        module whose whole name matches; ``*`` matches dots too.
        """
        module, _, _ = tensor.rpartition(".")
        return "float32" if _named(module, self.fp32_layers) else self.dtype

    def quantized(self, tensor: str, inputs: int) -> QuantizedType | None:
        """Integers of the weight called ``tensor``, by its layer's inputs; None if it is stored whole."""
        module, _, _ = tensor.rpartition(".")
        if self.quantization is None or _named(module, self.fp32_layers):
            return None
        return self.quantization.of(module, inputs)

    @property
    def shared_head(self) -> bool:
        """Whether the head has the embedding's weights in the bundle too, as it has in the checkpoint."""
        embedding, head = (f"{module}.weight" for module in (EMBEDDING, "lm_head"))
        width, same = self.model.text.hidden_size, self.weight_dtype(embedding) == self.weight_dtype(head)
        whole = not (self.quantized(embedding, width) or self.quantized(head, width))
        return self.model.text.tie_word_embeddings and same and whole

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


def check_proportional(spec: ExportSpec) -> None:
    """Refuse counts of what was dropped where it is not known.

    Raises:
        SettingsError: If nothing is dropped before the decoder, or the last stage adapts what it keeps.
    """
    if not spec.proportional:
        return
    if not spec.schedule:
        raise SettingsError(
            f"{option('proportional')} has no meaning with {option('prune', False)}; leave one of them out"
        )
    if spec.stage1 is None:
        raise SettingsError(
            f"{option('proportional')} needs a stage before the decoder; "
            f"give one with {option('schedule', '128@0,14@14')}"
        )
    if spec.adapts:
        raise SettingsError(
            f"{option('proportional')} can't be had with {option('keep_mass')}; leave one of them out"
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
    text, longest = spec.model.text, spec.groups[0].capacity
    limits = {"positions": text.max_position_embeddings, "tokens of its sliding window": text.sliding_window}
    for what, limit in limits.items():
        if limit is not None and longest > limit:
            raise SettingsError(
                f"{spec.max_visual_tokens} image + {spec.max_text_tokens} text + {spec.max_new_tokens} new "
                f"tokens are {longest}, over the model's {limit} {what}; lower "
                f"{option('max_text_tokens')}, {option('max_new_tokens')} or {option('max_image_tokens')}"
            )
