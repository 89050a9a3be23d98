"""What a schedule costs, from the shape of a model alone: it needs no weights, no graph and no GPU."""

from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from star_export.dtypes import DType
from star_export.errors import SettingsError, option
from star_export.flops import PrefillFlops, prefill_flops, pruned_layout, vision_flops
from star_export.gpus import Device
from star_export.parameters import Parameters, count_parameters, linear_shapes, weight_bytes
from star_export.specs import (
    QUANTIZED_TYPES,
    ExportSpec,
    ModelSpec,
    picture_grid,
    picture_tokens,
    resolve_quantization,
)

#: Share of its data sheet's figures that a device is taken to reach.
DEFAULT_EFFICIENCY = 0.6


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture, a question about it and the answer.

    Attributes:
        image_size: ``(height, width)`` of the picture in pixels.
        text_tokens: Tokens of the prompt that are not visual; all of them score the visual ones.
        new_tokens: Tokens of the answer.
    """

    image_size: tuple[int, int]
    text_tokens: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a device may do; nobody measured it.

    Attributes:
        ttft: Seconds to the first token, without preprocessing and queueing.
        tokens_per_second: Of one sequence, in the middle of its answer.
        sequences: KV caches that its memory has room for beside the weights; None where it is not known.
    """

    ttft: float
    tokens_per_second: float
    sequences: int | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one schedule costs.

    Attributes:
        tokens: Visual tokens in each layer of the decoder.
        visual_flops: FastV's formula (arXiv 2403.06764) for the visual tokens alone, as papers count;
            multiply-accumulates.
        prefill: Arithmetic of the whole prompt.
        kv_bytes: KV caches of the request when its answer is complete.
        slot_bytes: KV caches with room for the longest sequence.
        estimate: None without a device.
    """

    tokens: tuple[int, ...]
    visual_flops: float
    prefill: PrefillFlops
    kv_bytes: int
    slot_bytes: int
    estimate: Estimate | None

    @property
    def average(self) -> float:
        """Visual tokens per layer."""
        return sum(self.tokens) / len(self.tokens)

    @property
    def requests_per_gb(self) -> float:
        """Sequences whose KV caches take 10^9 bytes where each has room for the longest, as on engines."""
        return 1e9 / self.slot_bytes

    @property
    def fitted_requests_per_gb(self) -> float:
        """The same where they are as long as the request needs, as on ONNX Runtime."""
        return 1e9 / self.kv_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        derived = ("average", "requests_per_gb", "fitted_requests_per_gb")
        return asdict(self) | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A schedule beside none.

    Attributes:
        spec: The bundle that would be built.
        image_tokens: Visual tokens of the picture before any is pruned.
        planned: What its schedule costs.
        unpruned: What the model costs without one.
    """

    spec: ExportSpec
    request: Request
    device: Device | None
    efficiency: float
    image_tokens: int
    parameters: Parameters
    planned: Cost
    unpruned: Cost

    @property
    def flops(self) -> float:
        """Prefill arithmetic as a share of the unpruned."""
        return self.planned.prefill.exact / self.unpruned.prefill.exact

    @property
    def visual_saved(self) -> float:
        """Share of the visual tokens' arithmetic that is saved, as papers count."""
        return 1 - self.planned.visual_flops / self.unpruned.visual_flops

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of the bundle's weights by their type; integers have scales in the spec's element type."""
        inputs = {layer.name: layer.inputs for layer in linear_shapes(self.spec.model)}
        own = self.spec.quantization or resolve_quantization(
            "int4", block=None, vision=False, embedding=False, inputs=inputs
        )
        assert own is not None
        kinds = QUANTIZED_TYPES if own.layers is None else (own.type,)  # the checkpoint's stay what they are
        specs = {name: replace(self.spec, dtype=name, quantization=None) for name in get_args(DType)}
        specs |= {name: replace(self.spec, quantization=replace(own, type=name)) for name in kinds}
        return {name: weight_bytes(spec).stored for name, spec in specs.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schedule": [asdict(stage) for stage in self.spec.schedule],
            "dtype": self.spec.dtype,
            "quantization": asdict(self.spec.quantization) if self.spec.quantization else None,
            "request": asdict(self.request),
            "image_tokens": self.image_tokens,
            "parameters": asdict(self.parameters),
            "weight_bytes": self.weight_bytes,
            "device": asdict(self.device) if self.device else None,
            "efficiency": self.efficiency if self.device else None,
            "planned": self.planned.to_dict(),
            "unpruned": self.unpruned.to_dict(),
            "flops": self.flops,
            "visual_flops_saved": self.visual_saved,
        }


def plan(
    spec: ExportSpec,
    request: Request,
    device: Device | None = None,
    *,
    efficiency: float = DEFAULT_EFFICIENCY,
) -> Plan:
    """What a bundle costs.

    Args:
        spec: The bundle.
        request: What it is asked.
        device: What runs it, for estimates.
        efficiency: Share of the device's figures that it reaches.

    Raises:
        SettingsError: If the bundle does not take such a request, the device is of
            other element types, or there is no such share.
    """
    if not 0 < efficiency <= 1:
        raise SettingsError(f"{option('efficiency')} must be above 0 and at most 1, got {efficiency:g}")
    if device and spec.dtype not in device.dtypes:
        raise SettingsError(
            f"{option('dtype', spec.dtype)} is none of {device.name}'s figures, which are of "
            f"{' and '.join(device.dtypes)}; give one of these, or {option('bandwidth')} and "
            f"{option('flops')}"
        )
    tokens = _image_tokens(spec, request)
    reached = device and replace(
        device, bandwidth=device.bandwidth * efficiency, flops=device.flops * efficiency
    )
    return Plan(
        spec=spec,
        request=request,
        device=device,
        efficiency=efficiency,
        image_tokens=tokens,
        parameters=count_parameters(spec.model),
        planned=_cost(spec, request, reached),
        unpruned=_cost(replace(spec, schedule=()), request, reached),
    )


def _image_tokens(spec: ExportSpec, request: Request) -> int:
    """Visual tokens of a request that the bundle takes."""
    tokens, _ = picture_tokens(spec.model, request.image_size)
    height, width = request.image_size
    if tokens > spec.images.max_image_tokens or _tiles(spec.model, request) > spec.images.max_tiles:
        raise SettingsError(
            f"{option('image_size', f'{width}x{height}')} has {tokens} visual tokens in "
            f"{_tiles(spec.model, request)} tiles, over {option('max_image_tokens')} "
            f"{spec.images.max_image_tokens} or {option('max_tiles')} {spec.images.max_tiles}"
        )
    for name in ("text_tokens", "new_tokens"):
        value, most = getattr(request, name), getattr(spec, f"max_{name}")
        if not 1 <= value <= most:
            raise SettingsError(
                f"{option(name, value)} must be from 1 to {most}; for more raise {option(f'max_{name}')}"
            )
    return tokens


def _tiles(model: ModelSpec, request: Request) -> int:
    """Tiles of the picture, the first included."""
    vision, tiling = model.vision, model.tiling
    if tiling is None:
        return 1
    grid = picture_grid(request.image_size, tiling, tile=vision.image_size, side=vision.grid_side)
    return 1 + grid.tiles[0] * grid.tiles[1]


def _cost(spec: ExportSpec, request: Request, device: Device | None) -> Cost:
    text, (image_tokens, newlines) = spec.model.text, picture_tokens(spec.model, request.image_size)
    entering, keep = spec.entering(image_tokens, newlines), spec.asked(None, image_tokens) or None
    layout = pruned_layout(spec, entering=entering, keep=keep)
    words = request.text_tokens
    prefill = prefill_flops(text, layout, text_tokens=words, query_tokens=words)

    def cached(new_tokens: int) -> int:
        return spec.sequence_bytes(spec.lengths(words + new_tokens, entering, keep))

    return Cost(
        tokens=tuple(layout.tokens(text.num_layers)),
        visual_flops=prefill_flops(text, layout, text_tokens=0, query_tokens=0).fastv,
        prefill=prefill,
        kv_bytes=cached(request.new_tokens),
        slot_bytes=spec.slot_bytes,
        estimate=_estimate(spec, request, device, prefill, cached(request.new_tokens // 2))
        if device
        else None,
    )


def _estimate(
    spec: ExportSpec, request: Request, device: Device, prefill: PrefillFlops, cached: int
) -> Estimate:
    """Each part takes as long as its arithmetic or its weights, whichever is longer."""
    weights = weight_bytes(spec)
    seen = vision_flops(spec.model.vision, _tiles(spec.model, request))
    parts = ((seen, weights.vision), (prefill.exact, weights.read))
    room = None if device.memory is None else device.memory - weights.stored
    return Estimate(
        ttft=sum(max(flops / device.flops, size / device.bandwidth) for flops, size in parts),
        tokens_per_second=device.bandwidth / (weights.read + cached),
        sequences=None if room is None else max(0, int(room // spec.slot_bytes)),
    )
