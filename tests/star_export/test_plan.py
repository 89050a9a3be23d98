"""What plans say, against numbers worked out by hand and against the graphs' own parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_export.build import SpecOptions, resolve_sizes
from star_export.checkpoint.aliases import ALIASES
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.config import read_model
from star_export.checkpoint.published import SHAPES
from star_export.contract import DECODE, VISION
from star_export.errors import SettingsError
from star_export.flops import vision_flops
from star_export.gpus import GPUS, Device, find_device
from star_export.measure.machine import measure_machine
from star_export.parameters import count_parameters, linear_shapes, weight_bytes
from star_export.plan import Plan, Request, plan
from star_export.specs import picture_tokens

REQUEST = Request(image_size=(480, 640), text_tokens=64, new_tokens=128)
#: 1 TB/s, 100 TFLOP/s, 20 GB.
DEVICE = Device(name="round", bandwidth=1e12, flops=1e14, memory=2e10)


def planned(
    model: str = "llava-1.5-7b", device: Device | None = None, efficiency: float = 1.0, **options: Any
) -> Plan:
    given = SpecOptions(model=model, **{"dtype": "float16", **options})
    return plan(resolve_sizes(given, SHAPES[model]), REQUEST, device, efficiency=efficiency)


@pytest.mark.parametrize(("keep", "saved"), [(288, 33.1), (115, 49.8), (58, 55.3), (29, 58.0)])
def test_the_papers_points(keep: int, saved: float) -> None:
    found = planned(keep=keep)
    assert [stage.after_layer for stage in found.spec.schedule] == [0, 14]
    assert round(100 * found.visual_saved, 1) == saved


def test_tokens_and_bytes_by_hand() -> None:
    found = planned(keep=115)
    assert found.planned.tokens == (518,) * 14 + (115,) * 18
    per_token = 2 * 4096 * 2  # key and value, float16, one layer
    assert found.planned.kv_bytes == per_token * (14 * (518 + 192) + 18 * (115 + 192))
    assert found.unpruned.kv_bytes == per_token * 32 * (576 + 192)
    assert found.planned.slot_bytes == per_token * (14 * (518 + 1024) + 18 * (115 + 1024))
    assert found.planned.requests_per_gb == 1e9 / found.planned.slot_bytes
    assert found.planned.fitted_requests_per_gb == 1e9 / found.planned.kv_bytes
    assert found.weight_bytes["bfloat16"] == 2 * found.parameters.total == found.weight_bytes["float32"] / 2


def test_presets_have_the_average_they_name() -> None:
    assert planned(schedule="balanced-64").planned.average == pytest.approx(64, abs=0.3)
    assert planned(schedule="fast-64").planned.average == 64
    unpruned = planned(prune=False)
    assert unpruned.planned == unpruned.unpruned
    assert (unpruned.flops, unpruned.visual_saved) == (1, 0)


def test_three_stages() -> None:
    found = planned(schedule="300@0,100@8,20@24").planned
    assert found.tokens == (300,) * 8 + (100,) * 16 + (20,) * 8


def test_a_share_follows_the_picture() -> None:
    """A share of what this picture has, and not of the largest that fits."""
    found = planned("llava-onevision-qwen2-0.5b", keep_ratio=0.1)
    tokens, rows = picture_tokens(SHAPES["llava-onevision-qwen2-0.5b"], REQUEST.image_size)
    assert (found.image_tokens, tokens) == (2929, 2929)
    assert found.planned.tokens == (round(0.9 * (tokens - rows)) + rows,) * 11 + (293,) * 13


def test_an_estimate_by_hand() -> None:
    found = planned(keep=115, device=DEVICE)
    count, estimate = found.parameters, found.planned.estimate
    assert estimate is not None
    # Both the tower and the prefill take longer to compute than their weights to read.
    arithmetic = vision_flops(found.spec.model.vision, 1) + found.planned.prefill.exact
    assert estimate.ttft == pytest.approx(arithmetic / 1e14)
    read = 2 * (count.decoder - count.embeddings) + 16384 * (14 * (518 + 128) + 18 * (115 + 128))
    assert estimate.tokens_per_second == pytest.approx(1e12 / read)
    assert estimate.sequences == (2e10 - 2 * count.total) // found.planned.slot_bytes


def test_weights_bound_an_estimate_where_there_is_little_to_compute() -> None:
    found = planned(schedule="fast-1", device=Device(name="x", bandwidth=1e9, flops=1e18))
    count, estimate = found.parameters, found.planned.estimate
    assert estimate is not None
    assert estimate.ttft == pytest.approx(2 * (count.total - count.embeddings) / 1e9)
    assert estimate.sequences is None


def test_efficiency_divides_speed() -> None:
    whole, half = (planned(device=DEVICE, efficiency=share).planned.estimate for share in (1, 0.5))
    assert whole is not None
    assert half is not None
    assert half.ttft == pytest.approx(2 * whole.ttft)
    assert half.tokens_per_second == pytest.approx(whole.tokens_per_second / 2)


def test_weights_that_do_not_fit() -> None:
    estimate = planned("llava-v1.6-34b", device=GPUS["l4"]).planned.estimate
    assert estimate is not None
    assert estimate.sequences == 0


#: Billions, as the models' pages say, less the vision layers that are not exported (CLIP's last: 0.013).
BILLIONS = {
    "llava-1.5-7b": 7.05, "llava-1.5-13b": 13.34, "llava-v1.6-vicuna-7b": 7.05,
    "llava-v1.6-vicuna-13b": 13.34, "llava-v1.6-mistral-7b": 7.55, "llava-v1.6-34b": 34.74,
    "llama3-llava-next-8b": 8.34, "llava-interleave-qwen-0.5b": 0.86, "llava-interleave-qwen-7b": 8.14,
    "llava-onevision-qwen2-0.5b": 0.89, "llava-onevision-qwen2-7b": 8.03,
}  # fmt: skip


def test_every_alias_has_a_shape_of_its_published_size() -> None:
    assert list(SHAPES) == list(ALIASES)
    found = {name: round(count_parameters(shape).total / 1e9, 2) for name, shape in SHAPES.items()}
    assert found == BILLIONS
    assert all(shape.image_token_id < shape.text.vocab_size for shape in SHAPES.values())


@pytest.mark.parametrize("preset", ["vicuna", "gqa", "feature-layers", "full", "interleave", "next-llama3"])
def test_parameters_are_those_of_the_graphs(checkpoint: Callable[[str], Path], preset: str) -> None:
    from star_export.graphs.export import fake_module

    model = read_model(checkpoint(preset))
    spec = resolve_sizes(SpecOptions(model=preset, prune=False), model)

    def stored(graph: str) -> int:
        return sum(weight.numel() for weight in fake_module(graph, spec).parameters())

    count = count_parameters(model)
    assert (count.vision, count.decoder) == (stored(VISION), stored(DECODE))
    assert count.embeddings == model.text.vocab_size * model.text.hidden_size


@pytest.mark.parametrize(
    ("preset", "quantize", "block"),
    [("gqa", "int4", 64), ("feature-layers", "uint4", 32), ("interleave", "int8", 32)],
)
def test_bytes_are_those_of_the_weights_files(
    checkpoint: Callable[[str], Path], preset: str, quantize: str, block: int
) -> None:
    from star_export.graphs.export import fake_module, linear_layers
    from star_export.graphs.weights import plan_weights

    opened = open_checkpoint(str(checkpoint(preset)))
    spec = resolve_sizes(
        SpecOptions(
            model=preset, prune=False, dtype="float16",
            quantize=quantize, quantize_block=block, quantize_vision=block == 32,
            quantize_embedding=block == 32,
        ),
        opened.model,
    )  # fmt: skip

    def written(graph: str) -> int:
        tensors = plan_weights(fake_module(graph, spec), opened, spec)
        return sum(tensor.nbytes for tensor in tensors if not tensor.name.startswith("rotary."))

    found, inputs = weight_bytes(spec), linear_layers(spec)
    assert (found.vision, found.decoder) == (written(VISION), written(DECODE))
    assert all(inputs[layer.name] == (layer.inputs, layer.outputs) for layer in linear_shapes(opened.model))
    assert sum(layer.count for layer in linear_shapes(opened.model)) == len(inputs)


def test_few_bits_by_hand() -> None:
    found = planned(keep=115, device=DEVICE, quantize="int4", quantize_block=128)
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    head, embeddings, norms = 32064 * 4096, 32064 * 4096, 65 * 4096
    vision = 2 * found.parameters.vision
    four = layers // 2 + layers // 128 * 2  # two in a byte, and float16 scales
    eight = head + head // 128 * 2
    read = four + eight + 2 * norms
    assert found.weight_bytes["int4"] == vision + read + 2 * embeddings
    assert found.weight_bytes["uint4"] == found.weight_bytes["int4"] + layers // 256 + head // 128
    assert found.weight_bytes["int8"] == found.weight_bytes["int4"] + layers // 2
    estimate = found.planned.estimate
    assert estimate is not None
    caches = 16384 * (14 * (518 + 128) + 18 * (115 + 128))
    assert estimate.tokens_per_second == pytest.approx(1e12 / (read + caches))
    assert estimate.sequences == (2e10 - found.weight_bytes["int4"]) // found.planned.slot_bytes


def test_gpus() -> None:
    assert find_device("RTX 4090", None, None, measure=measure_machine) == GPUS["rtx-4090"]
    own = find_device(None, 100, 2.5, measure=measure_machine)
    assert own == Device(name="given figures", bandwidth=1e11, flops=2.5e12)
    assert find_device(None, None, None, measure=measure_machine) is None
    # A byte takes as long as 60 to 500 operations: nobody has mixed up the columns.
    assert all(60 < gpu.flops / gpu.bandwidth < 500 for gpu in GPUS.values())


def test_this_machine() -> None:
    found = find_device("this", None, None, measure=measure_machine)
    assert found is not None
    assert found.dtypes == ("float32",)
    assert 1e8 < found.bandwidth < 1e13
    assert 1e8 < found.flops < 1e14
    assert found.memory is None or found.memory > 1e8


@pytest.mark.parametrize(
    ("gpu", "bandwidth", "flops", "message"),
    [
        ("rtx 4080", None, None, "gpu=rtx 4080 is not known; did you mean rtx-4090"),
        ("h100", None, None, "did you mean h100-sxm"),
        ("l4", 1.0, None, "either gpu or bandwidth"),
        ("this", None, 1.0, "either gpu or flops"),
        (None, 1.0, None, "bandwidth needs flops"),
        (None, None, 1.0, "flops needs bandwidth"),
        (None, -1.0, 1.0, "bandwidth must be above 0, got -1"),
        (None, 1.0, float("nan"), "flops must be above 0, got nan"),
    ],
)
def test_devices_that_are_none(
    gpu: str | None, bandwidth: float | None, flops: float | None, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        find_device(gpu, bandwidth, flops, measure=measure_machine)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            "llava-1.5-7b",
            {"max_text_tokens": 63},
            "text_tokens=64 must be from 1 to 63; for more raise max_text",
        ),
        ("llava-1.5-7b", {"max_new_tokens": 9}, "new_tokens=128 must be from 1 to 9"),
        (
            "llava-v1.6-vicuna-7b",
            {"max_tiles": 3},
            "image_size=640x480 has 2340 visual tokens in 5 tiles, over",
        ),
        ("llava-onevision-qwen2-7b", {"max_image_tokens": 2928}, "image_size=640x480 has 2929 visual tokens"),
        ("llava-1.5-7b", {"device": GPUS["l4"], "dtype": "float32"}, "dtype=float32 is none of l4's figures"),
        ("llava-1.5-7b", {"efficiency": 1.5}, "efficiency must be above 0 and at most 1, got 1.5"),
        ("llava-1.5-7b", {"quantize": "int3"}, "quantize must be int4, uint4, int8, uint8, got int3"),
        ("llava-1.5-7b", {"schedule": "64@0,64@14"}, "stage 2 keeps up to 64 tokens, expected at most 63"),
        ("llava-1.5-7b", {"schedule": "64@32"}, "64@32 is outside; this decoder's 32 layers"),
        ("llava-interleave-qwen-7b", {"stage1": "cls"}, "needs a class token"),
    ],
)
def test_what_cannot_be_planned(model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        planned(model, **options)
