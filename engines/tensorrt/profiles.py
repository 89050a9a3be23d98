"""Which shapes an engine accepts: the range of every dynamic size.

The ranges follow from the bundle's capacities alone. They agree with each other
at every corner (no more scoring rows than text tokens, no more kept tokens than
there are), so that TensorRT never plans for a request that cannot exist.
"""

from star_export.contract import TensorSpec, contract, size_ranges
from star_export.engines.tensorrt.bindings import TENSORRT
from star_export.engines.tensorrt.facts import Profile
from star_export.errors import SettingsError, option
from star_export.specs import ExportSpec

#: Text tokens of the request that TensorRT tunes for: a short question in its template.
TYPICAL_TEXT_TOKENS = 64

#: TensorRT's TopK layer chooses at most so many (operator page of TopK); the plugin has no limit.
MAX_TOPK = 3840


def tuned_ranges(spec: ExportSpec, max_batch: int) -> dict[str, tuple[int, int, int]]:
    """Minimum, optimum and maximum of every symbolic size of the contract."""
    typical = min(TYPICAL_TEXT_TOKENS, spec.max_text_tokens)
    optima = {"B": 1, "S": spec.image_tokens + typical, "Q": max(1, typical // 2)}
    return {
        name: (size.min, size.default or optima[name], size.max or max_batch)
        for name, size in size_ranges(spec).items()
    }


def engine_profiles(spec: ExportSpec, *, max_batch: int) -> dict[str, dict[str, Profile]]:
    """Per graph, the profile of every input with a dynamic size.

    Raises:
        SettingsError: If ``max_batch`` is below 1.
    """
    if max_batch < 1:
        raise SettingsError(f"{option('max_batch')} must be at least 1, got {max_batch}")
    ranges = tuned_ranges(spec, max_batch)
    return {
        graph: {tensor.name: _profile(tensor, ranges) for tensor in io.inputs if _is_dynamic(tensor)}
        for graph, io in contract(spec).items()
    }


def check_topk(spec: ExportSpec) -> None:
    """Refuse budgets over what TensorRT's own TopK can choose; for engines without the plugin.

    Raises:
        SettingsError: If a stage keeps more than 3840 tokens.
    """
    inside = max((stage.max_tokens + spec.max_text_tokens for stage in spec.decoder_stages), default=0)
    for what, kept in (
        ("stage 1 keeps", spec.stage1.max_tokens if spec.stage1 else 0),
        (f"{option('max_keep')} and {option('max_text_tokens')} make", inside),
    ):
        if kept > MAX_TOPK:
            raise SettingsError(
                f"{what} {kept} tokens, TensorRT's TopK chooses at most {MAX_TOPK}; "
                f"lower it, or use {option('backend', TENSORRT)} with the plugin"
            )


def _is_dynamic(tensor: TensorSpec) -> bool:
    return any(isinstance(size, str) for size in tensor.shape)


def _profile(tensor: TensorSpec, ranges: dict[str, tuple[int, int, int]]) -> Profile:
    corners = [
        tuple(ranges[size][corner] if isinstance(size, str) else size for size in tensor.shape)
        for corner in range(3)
    ]
    return Profile(*corners)
