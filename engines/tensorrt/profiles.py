"""Which shapes an engine accepts: the range of every dynamic size.

The ranges follow from the bundle's capacities alone. They agree with each other
at every corner (no more scoring rows than text tokens, no more kept tokens than
there are), so that TensorRT never plans for a request that cannot exist.
"""

from collections.abc import Sequence

from star_export.contract import TensorSpec, capacity_symbols, contract, drops, size_ranges
from star_export.engines.tensorrt.bindings import TENSORRT
from star_export.engines.tensorrt.facts import Profile
from star_export.errors import SettingsError, option
from star_export.specs import ExportSpec, Tiling, picture_grid

#: Text tokens of the request that TensorRT tunes for: a short question in its template.
TYPICAL_TEXT_TOKENS = 64

#: TensorRT's TopK layer chooses at most so many (operator page of TopK); the plugin has no limit.
MAX_TOPK = 3840


def check_rooms(spec: ExportSpec, rooms: Sequence[int]) -> None:
    """Refuse rooms for text and answer for which there can be no engines, or twice the same.

    Raises:
        SettingsError: If they don't ascend, or one is below what decode appends or above what the bundle has.
    """
    shown = option("capacities", ",".join(map(str, rooms)))
    if rooms and spec.fixed_capacities:
        raise SettingsError(f"{shown}: these graphs are older and have one capacity; build the bundle again")
    if list(rooms) != sorted(set(rooms)):
        raise SettingsError(f"{shown} must ascend, each number once")
    if rooms and rooms[0] < spec.append_tokens:
        raise SettingsError(
            f"{shown}: {rooms[0]} is too small, decode appends up to {spec.append_tokens} tokens at once; "
            f"give at least {spec.append_tokens}"
        )
    if rooms and rooms[-1] > spec.room:
        raise SettingsError(
            f"{shown}: {rooms[-1]} is too large, this bundle has {spec.max_text_tokens} text + "
            f"{spec.max_new_tokens} new tokens; give at most {spec.room}, or build it with a larger "
            f"{option('max_text_tokens')} or {option('max_new_tokens')}"
        )


def tuned_ranges(
    spec: ExportSpec, max_batch: int, room: int | None = None
) -> dict[str, tuple[int, int, int]]:
    """Minimum, optimum and maximum of every symbolic size of the contract.

    Args:
        spec: What was exported.
        max_batch: Sequences of a decode step.
        room: Tokens of text and answer that KV caches have room for; as many as may be by default.
    """
    optima, ranges = _typical_request(spec), {}
    capacities = spec.capacities if room is None else spec.capacities_with(room)
    pinned = dict(zip(capacity_symbols(spec), capacities, strict=True))  # which TensorRT must know
    for name, size in size_ranges(spec).items():
        most = max_batch if size.max is None else size.max
        if name == "D1":  # as many as the bundle's own share drops, and as TopK chooses
            most = min(most, max(spec.max_dropped, MAX_TOPK))
        if name == "S":
            most = min(most, capacities[0])
        ranges[name] = (size.min, size.default or max(size.min, min(optima[name], most)), most)
        if name in pinned:
            ranges[name] = (pinned[name],) * 3
    return ranges


def _typical_request(spec: ExportSpec) -> dict[str, int]:
    """Sizes of the request that TensorRT tunes for: one picture, a short question, then token by token."""
    text = min(TYPICAL_TEXT_TOKENS, spec.max_text_tokens)
    sizes = {"B": 1, "C": 1, "Q": max(1, text // 2), "V": spec.image_tokens}
    if spec.model.tiling is not None:
        sizes |= _typical_picture(spec, spec.model.tiling)
    return sizes | {"S": sizes["V"] + text}


def _typical_picture(spec: ExportSpec, tiling: Tiling) -> dict[str, int]:
    """Sizes of a picture of 4:3 that is two tiles wide."""
    vision = spec.model.vision
    tile = vision.image_size
    grid = picture_grid((tile * 3 // 2, tile * 2), tiling, tile=tile, side=vision.grid_side)
    tokens = vision.tile_tokens + grid.tokens
    entering = spec.entering(tokens, grid.shape[0])
    tiles = 1 + grid.tiles[0] * grid.tiles[1]
    return {"T": tiles, "P": tokens, "D1": tokens - entering, "N1": entering, "V": entering}


def engine_profiles(
    spec: ExportSpec, *, max_batch: int, room: int | None = None
) -> dict[str, dict[str, Profile]]:
    """Per graph, the profile of every input with a dynamic size; see :func:`tuned_ranges`.

    Raises:
        SettingsError: If ``max_batch`` is below 1.
    """
    if max_batch < 1:
        raise SettingsError(f"{option('max_batch')} must be at least 1, got {max_batch}")
    ranges = tuned_ranges(spec, max_batch, room)
    return {
        graph: {tensor.name: _profile(tensor, ranges) for tensor in io.inputs if _is_dynamic(tensor)}
        for graph, io in contract(spec).items()
    }


def check_topk(spec: ExportSpec) -> None:
    """Refuse budgets over what TensorRT's own TopK can choose; for engines without the plugin.

    Raises:
        SettingsError: If a stage chooses more than 3840 tokens: to keep them, or, before the decoder of a
            family that cuts pictures, to drop them.
    """
    inside = max((stage.max_tokens + spec.max_text_tokens for stage in spec.decoder_stages), default=0)
    entering, dropped = spec.image_tokens if spec.stage1 else 0, 0
    if drops(spec):
        entering, dropped = 0, spec.max_dropped
    for count, what, remedy in (
        (entering, "stage 1 keeps", f"raise {option('drop_ratio')} or keep fewer in {option('schedule')}"),
        (dropped, "stage 1 drops", f"lower {option('drop_ratio')} or {option('max_image_tokens')}"),
        (
            inside,
            "with the text, a later stage keeps",
            f"lower {option('max_keep')} or {option('max_text_tokens')}",
        ),
    ):
        if count > MAX_TOPK:
            raise SettingsError(
                f"{what} up to {count} tokens, TensorRT's TopK chooses at most {MAX_TOPK}; "
                f"{remedy}, or use {option('backend', TENSORRT)} with the plugin"
            )


def _is_dynamic(tensor: TensorSpec) -> bool:
    return any(isinstance(size, str) for size in tensor.shape)


def _profile(tensor: TensorSpec, ranges: dict[str, tuple[int, int, int]]) -> Profile:
    corners = [
        tuple(ranges[size][corner] if isinstance(size, str) else size for size in tensor.shape)
        for corner in range(3)
    ]
    return Profile(*corners)
