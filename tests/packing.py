"""Writers of quantised checkpoints, straight from the definitions of their formats, for tests."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
#: Column in each place of AWQ's word, lowest bits first.
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)

Ints = np.ndarray[Any, np.dtype[np.int64]]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """Unsigned ``integers [in, out]``, ``scales`` and ``zeros [groups, out]``, ``groups [in]``."""

    integers: Ints
    scales: torch.Tensor
    zeros: Ints
    groups: Ints

    @property
    def values(self) -> torch.Tensor:
        """``[out, in]``."""
        centred = torch.from_numpy(self.integers - self.zeros[self.groups]).float()
        return (centred * self.scales.float()[torch.from_numpy(self.groups)]).T.contiguous()


def quantised(
    weight: torch.Tensor,
    *,
    bits: int,
    group: int | None,
    symmetric: bool,
    groups: Ints | None = None,
    scales: torch.dtype = torch.float16,
) -> Layer:
    """The nearest integers to ``weight [out, in]``."""
    wide = weight.float().T.numpy()
    if groups is None:
        groups = np.arange(len(wide)) // (group or len(wide))
    low, high = (
        np.stack([f(wide[groups == g], 0, initial=0.0) for g in range(groups.max() + 1)])
        for f in (np.min, np.max)
    )
    levels, middle = 2**bits - 1, 2 ** (bits - 1)
    spans = 2 * np.maximum(-low, high) if symmetric else high - low
    stored = torch.from_numpy(spans / levels + 1e-6).to(scales)
    steps = stored.float().numpy()
    zeros = np.full_like(low, middle) if symmetric else np.clip(np.round(-low / steps), 0, levels)
    integers = np.clip(np.round(wide / steps[groups] + zeros[groups]), 0, levels)
    return Layer(integers.astype(np.int64), stored, zeros.astype(np.int64), groups)


def words(values: Ints, bits: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """int32 ``[rows, words]`` of unsigned ``[rows, values]``: those of a row one after the other."""
    each = 32 // bits
    places = places or tuple(range(each))
    made = np.zeros((len(values), values.shape[1] // each), np.int64)
    for row, word in np.ndindex(*made.shape):
        for place, column in enumerate(places):
            made[row, word] |= int(values[row, word * each + column]) << (bits * place)
    return torch.from_numpy(made.astype(np.uint32).view(np.int32).reshape(made.shape).copy())


def awq(layer: Layer, bits: int) -> Tensors:
    return {
        "qweight": words(layer.integers, bits, AWQ_COLUMNS),
        "qzeros": words(layer.zeros, bits, AWQ_COLUMNS),
        "scales": layer.scales,
    }


def gptq(layer: Layer, bits: int, *, offset: int = 1) -> Tensors:
    return {
        "qweight": words(layer.integers.T, bits).T.contiguous(),
        "qzeros": words((layer.zeros - offset) & (2**bits - 1), bits),
        "scales": layer.scales,
        "g_idx": torch.from_numpy(layer.groups).int(),
    }


def pack_quantized(layer: Layer, bits: int, *, zeros: bool, order: bool = False) -> Tensors:
    made = {
        "weight_packed": words(layer.integers.T, bits),
        "weight_scale": layer.scales.T.contiguous(),
        "weight_shape": torch.tensor(layer.integers.T.shape),
    }
    if zeros:
        made["weight_zero_point"] = words(layer.zeros, bits).T.contiguous()
    return made | ({"weight_g_idx": torch.from_numpy(layer.groups).int()} if order else {})


def int_quantized(layer: Layer, bits: int, *, zeros: bool) -> Tensors:
    integers, middle = layer.integers.T, 2 ** (bits - 1)
    made = {
        "weight": torch.from_numpy(integers - middle).to(torch.int8).contiguous(),
        "weight_scale": layer.scales.T.contiguous(),
    }
    if zeros:
        made["weight_zero_point"] = torch.from_numpy(layer.zeros.T - middle).to(torch.int8).contiguous()
    return made


def compressed(*, form: str, **weights: Any) -> dict[str, Any]:
    """compressed-tensors' config, as llm-compressor writes it."""
    weights = {"type": "int", "dynamic": False, "observer": "minmax", "actorder": None, **weights}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["re:.*lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def write_quantised(
    source: Path,
    folder: Path,
    config: dict[str, Any],
    pack: Callable[[str, torch.Tensor], tuple[Layer, Tensors]],
    *,
    which: str = "language_model.",
) -> dict[str, Layer]:
    """A copy of a checkpoint with the linear layers of a part packed.

    Args:
        source: A checkpoint with whole weights.
        folder: Where the copy goes.
        config: Its ``quantization_config``.
        pack: Name and weight ``[out, in]`` of a layer -> the layer, and its tensors by what follows its name.
        which: What the names of the layers have in them.

    Returns:
        The layers by their names in the files.
    """
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    data = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"quantization_config": config}))
    layers, tensors = dict[str, Layer](), Tensors()
    for name, tensor in _tensors(source):
        module = name.removesuffix(".weight")
        if which in name and module.endswith("_proj"):
            layers[module], parts = pack(module, tensor)
            tensors |= {f"{module}.{part}": value for part, value in parts.items()}
        else:
            tensors[name] = tensor.half()
    save_file(tensors, folder / "model.safetensors")
    return layers


def _tensors(source: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(source.glob("*.safetensors")):
        yield from load_file(path).items()
