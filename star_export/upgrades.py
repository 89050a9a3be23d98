"""From each older format of ``manifest.json`` to the next.

An upgrade sees JSON values that nobody has checked yet: what is missing or of another type it leaves
as it is, for the reader of the present format to name.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

Json = dict[str, Any]

FORMAT_VERSION = 3

_ATTENTION_BIASES = ("q_bias", "k_bias", "v_bias", "o_bias")


def _to_2(manifest: Json) -> Json:
    """Format 2 numbers the contract, of which format 1 knew one version."""
    return {**manifest, "format_version": 2, "contract_version": 1}


def _to_3(manifest: Json) -> Json:
    """Format 3 says in data what readers of format 2 had to compute."""
    groups = partial(_groups_to_3, spec=manifest.get("spec"))
    manifest = _replaced(manifest, "cache_capacities", "groups", groups)
    return _replaced({**manifest, "format_version": 3}, "spec", "spec", _spec_to_3)


def _spec_to_3(spec: Any) -> Any:
    if not isinstance(spec, dict):
        return spec
    return _replaced(_replaced(spec, "star", "schedule", _schedule_to_3), "model", "model", _model_to_3)


def _replaced(values: Json, old: str, new: str, change: Callable[[Any], Any]) -> Json:
    """The same with another key and a changed value where there was ``old``, if anywhere."""
    return {new if key == old else key: change(v) if key == old else v for key, v in values.items()}


def _schedule_to_3(star: Any) -> Any:
    """STAR's two stages, of which format 2 knew no others."""
    if not isinstance(star, dict):
        return [] if star is None else star
    entering = {key: star["stage1_keep"] for key in ("tokens", "max_tokens") if "stage1_keep" in star}
    names = {"prune_layer": "after_layer", "keep": "tokens", "max_keep": "max_tokens"}
    inside = {names.get(k, k): v for k, v in star.items() if k not in ("drop_ratio", "stage1_keep")}
    return [{"after_layer": 0, "score": "received", **entering}, {**inside, "score": "text"}]


def _groups_to_3(capacities: Any, spec: Any) -> Any:
    """The groups of decoder layers, of which format 2 told the capacities alone."""
    match capacities, spec:
        case (
            {"early": early, "late": late, **unknown},
            {"star": star, "model": {"text": {"num_layers": int(layers)}}},
        ) if not unknown:
            whole = {"first": 0, "last": layers - 1, "capacity": early, "lengths": "early_lengths"}
            if star is None and late == 0:
                return [whole]
            if isinstance(star, dict) and isinstance(first := star.get("prune_layer"), int):
                behind = {"first": first, "last": layers - 1, "capacity": late, "lengths": "late_lengths"}
                return [{**whole, "last": first - 1}, behind]
    return capacities


def _model_to_3(model: Any) -> Any:
    """Format 2 knew one family, one vision tower, and one switch for all biases of attention."""
    if not isinstance(model, dict):
        return model
    model = {"model_type": "llava", **model}
    if isinstance(model.get("vision"), dict):
        model["vision"] = {"model_type": "clip_vision_model", **model["vision"]}
    if isinstance(model.get("text"), dict) and "attention_bias" in model["text"]:
        text = dict(model["text"])
        model["text"] = dict.fromkeys(_ATTENTION_BIASES, text.pop("attention_bias")) | text
    return model


#: The upgrade of each older format.
UPGRADES: dict[int, Callable[[Json], Json]] = {1: _to_2, 2: _to_3}
