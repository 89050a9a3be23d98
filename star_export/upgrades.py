"""From each older format of ``manifest.json`` to the next.

An upgrade sees JSON values that nobody has checked yet: what is missing or of another type it leaves
as it is, for the reader of the present format to name.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

Json = dict[str, Any]

FORMAT_VERSION = 5

_ATTENTION_BIASES = ("q_bias", "k_bias", "v_bias", "o_bias")


def _to_2(manifest: Json) -> Json:
    """Format 2 numbers the contract, of which format 1 knew one version."""
    return {**manifest, "format_version": 2, "contract_version": 1}


def _to_3(manifest: Json) -> Json:
    """Format 3 says in data what readers of format 2 had to compute."""
    old = manifest.get("spec")
    manifest = _replaced(manifest, "cache_capacities", "groups", partial(_groups_to_3, spec=old))
    manifest = _replaced({**manifest, "format_version": 3}, "spec", "spec", _spec_to_3)
    return _replaced(manifest, "contract", "contract", _contract_to_3) | _sizes_to_3(old)


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


def _contract_to_3(contract: Any) -> Any:
    """The roles and aliases of tensors, which format 2 told by their names alone."""
    if not isinstance(contract, dict):
        return contract
    return {
        name: _graph_to_3(graph) if isinstance(graph, dict) else graph for name, graph in contract.items()
    }


def _graph_to_3(graph: Json) -> Json:
    inputs, aliases = graph.get("inputs"), {}
    match graph.get("outputs"):
        case list(outputs):
            present = [o["name"] for o in outputs if isinstance(o, dict) and isinstance(o.get("name"), str)]
            aliases = {n: n.replace("present", "past_key_values") for n in present if n[:8] == "present."}
    if isinstance(inputs, list):
        graph = {**graph, "inputs": [_input_to_3(tensor) for tensor in inputs]}
    return {**graph, "aliases": aliases}


def _input_to_3(tensor: Any) -> Any:
    match tensor:
        case {"name": "stage1_slots" | "stage2_slots"}:
            return {**tensor, "role": "length"}
    return tensor


def _sizes_to_3(spec: Any) -> Json:
    """The ranges of symbolic sizes, if the spec of format 2 has the numbers that they follow from."""
    match spec:
        case {
            "model": {"vision": {"image_size": int(side), "patch_size": int(patch)}},
            "max_text_tokens": int(text),
            "star": star,
        } if patch > 0:
            visual, stages = (side // patch) ** 2, {}
        case _:
            return {}
    match star:
        case {"stage1_keep": int(visual), "keep": keep, "max_keep": most}:
            stages = {
                "Q": {"min": 1, "max": text},
                "N1": {"min": 1, "max": visual, "default": visual},
                "N2": {"min": 1, "max": most, "default": keep},
            }
    least = 1 if stages else visual
    prompt = {"min": least + 1, "max": visual + text}
    entering = {"min": least, "max": visual, "default": visual}
    return {"sizes": {"B": {"min": 1, "max": None}, "S": prompt, "V": entering, **stages}}


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


def _to_4(manifest: Json) -> Json:
    """Format 4 says what format 3 took for granted: one picture of one tile, one token at a time."""
    return _replaced({**manifest, "format_version": 4}, "spec", "spec", _spec_to_4)


def _spec_to_4(spec: Any) -> Any:
    if not isinstance(spec, dict):
        return spec
    spec = _replaced(_replaced(spec, "schedule", "schedule", _schedule_to_4), "model", "model", _model_to_4)
    spec = {"append_tokens": 1, "proportional": False, **spec}
    match spec:
        case {"model": {"vision": {"image_size": int(side), "patch_size": int(patch)}}} if patch > 0:
            images = {"max_images": 1, "max_tiles": 1, "max_image_tokens": (side // patch) ** 2}
            return {"images": images, **spec}
    return spec


def _schedule_to_4(schedule: Any) -> Any:
    if not isinstance(schedule, list):
        return schedule
    return [
        {**stage, "share": None, "mass": None} if isinstance(stage, dict) else stage for stage in schedule
    ]


def _model_to_4(model: Any) -> Any:
    """Format 3 knew CLIP's patches from one layer, and decoders that see everything."""
    if not isinstance(model, dict):
        return model
    model = {"tiling": None, **model}
    if isinstance(vision := model.get("vision"), dict):
        layers = {"feature_layers": [vision["num_layers"]]} if "num_layers" in vision else {}
        model["vision"] = {"has_cls": True, "feature_select": "default", **vision, **layers}
    if isinstance(model.get("text"), dict):
        model["text"] = {"sliding_window": None, **model["text"]}
    return model


def _to_5(manifest: Json) -> Json:
    """Before format 5, graphs had KV caches of one capacity, and weights no few bits."""
    return _replaced({**manifest, "format_version": 5}, "spec", "spec", _spec_to_5)


def _spec_to_5(spec: Any) -> Any:
    return {"quantization": None, **spec, "fixed_capacities": True} if isinstance(spec, dict) else spec


#: The upgrade of each older format.
UPGRADES: dict[int, Callable[[Json], Json]] = {1: _to_2, 2: _to_3, 3: _to_4, 4: _to_5}
