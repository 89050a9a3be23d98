"""The parity check fails when something is wrong, and at the stage where it is wrong.

Each test breaks one thing: a weight, a node of a graph, a number fed to it, a parameter.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import DecodeState
from star_export.engines import Runtime, open_session
from star_export.preprocessing import TokenizedPrompt
from star_export.validation.probes import make_probes
from tests.validation.lab import (
    Edit,
    Lab,
    changed,
    changed_weight,
    constant,
    first_failure,
    make_lab,
    nodes,
    producer,
    table,
)


@pytest.fixture(scope="module")
def lab_of(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Lab]:
    return lambda preset: make_lab(
        bundle(preset), checkpoint(preset), tmp_path_factory.mktemp(preset), make_probes(1)[0]
    )


@pytest.fixture(scope="module")
def mha(lab_of: Callable[[str], Lab]) -> Lab:
    return lab_of("mha")


def test_nothing_broken(mha: Lab) -> None:
    assert mha.failed() == []


# One element of every weight.


def first_failures(lab: Lab, file: str, *wanted: str, **rows: int) -> dict[str, str | None]:
    """Each tensor whose name holds one of ``wanted``, and the first stage that fails once it is changed."""
    path, found = lab.bundle.path(f"graphs/{file}.safetensors"), {}
    for name in table(path.read_bytes())[1]:
        if any(part in name for part in wanted or ("",)):
            with changed_weight(path, name, rows.get(name.split(".")[1], 0)):
                found[name] = next(iter(lab.failed()), None)
    return found


@pytest.mark.slow
def test_every_vision_weight(mha: Lab) -> None:
    found = first_failures(mha, "vision")
    assert len(found) == 3 + 2 + 3 * 16 + 4
    # A constant added to every key adds one number to all logits of a query: softmax does not
    # see it. In the decoder, RoPE turns the constant by each key's position, and it counts.
    invisible = {name for name in found if name.endswith("k_proj.bias")}
    assert len(invisible) == 3
    assert found == {name: None if name in invisible else "vision_features" for name in found}


@pytest.mark.parametrize("layers", [(1, 4), pytest.param(range(6), marks=pytest.mark.slow)])
def test_every_decoder_weight(mha: Lab, layers: Sequence[int]) -> None:
    """Of one layer before the last stage and one behind it; of all, slowly."""
    # Rows in use: a token of the prompt; the second position, since the first turns nothing.
    token = int(mha.tokens().input_ids[0, -1])
    others = ("embed_tokens", "rotary.", "model.norm", "lm_head")
    found = first_failures(
        mha, "decoder", *(f"layers.{layer}." for layer in layers), *others, embed_tokens=token, cos=1, sin=1
    )
    assert len(found) == 1 + 9 * len(layers) + 2 + 2
    late = ("layers.3", "layers.4", "layers.5", "model.norm", "lm_head")
    for name, first in found.items():
        early = not any(part in name for part in late)
        assert first == "prefill_logits" or (early and first == "stage2_set"), name


@pytest.mark.slow
def test_every_decoder_bias(lab_of: Callable[[str], Lab]) -> None:
    gqa = lab_of("gqa")
    assert gqa.failed() == []
    found = first_failures(gqa, "decoder", ".bias")
    assert len(found) == 4 * 4
    assert set(found.values()) <= {"stage2_set", "prefill_logits"}


def test_rotary_rows_that_only_decoding_uses(mha: Lab) -> None:
    length = mha.tokens().input_ids.shape[1]
    found = first_failures(mha, "decoder", "rotary.", cos=length, sin=length)
    assert found == {"rotary.cos": "decode_logits", "rotary.sin": "decode_logits"}


# One node of a graph.


def scoring(model: onnx.ModelProto) -> onnx.NodeProto:
    (mean,) = nodes(model, "ReduceMean")  # over heads and rows
    return mean


def insert_before(model: onnx.ModelProto, where: onnx.NodeProto, *new: onnx.NodeProto) -> None:
    at = list(model.graph.node).index(where)
    for offset, node in enumerate(new):
        model.graph.node.insert(at + offset, node)


def set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def keep_the_lowest(model: onnx.ModelProto) -> None:
    set_attribute(next(n for n in model.functions[0].node if n.op_type == "TopK"), "largest", 0)


def keep_in_order_of_score(model: onnx.ModelProto) -> None:
    _, sort = (node for node in model.functions[0].node if node.op_type == "TopK")
    sort.CopyFrom(helper.make_node("Identity", ["best"], ["indices"]))


def score_the_patch_before(model: onnx.ModelProto) -> None:
    columns = producer(model, scoring(model).input[0])
    columns.input[1], columns.input[2] = constant(model, [0]), constant(model, [-1])


def average_over_the_softmax_axis(model: onnx.ModelProto) -> None:
    scoring(model).input[1] = constant(model, [1, 3])  # heads and keys, as the paper prints it


def softmax_over_rows(model: onnx.ModelProto) -> None:
    (softmax,) = nodes(model, "Softmax")
    set_attribute(softmax, "axis", -2)


def score_the_position_before(model: onnx.ModelProto) -> None:
    (softmax,) = nodes(model, "Softmax")
    (gather,) = (n for n in nodes(model, "Gather") if n.input[0] == softmax.output[0])
    insert_before(model, gather, helper.make_node("Sub", [gather.input[1], constant(model, [1])], ["before"]))
    gather.input[1] = "before"


def renumber_kept_tokens(model: onnx.ModelProto) -> None:
    late = [node for node in nodes(model, "RotaryEmbedding") if node.input[3] == "kept_positions"]
    (positions,) = nodes(model, "Range")
    zero = constant(model, [0])
    insert_before(
        model,
        late[0],
        helper.make_node("Shape", ["kept_positions"], ["count"], start=1),
        helper.make_node("Slice", [positions.output[0], zero, "count"], ["numbers"]),
        helper.make_node("Unsqueeze", ["numbers", zero], ["renumbered"]),
    )
    for node in late:
        node.input[3] = "renumbered"


def cache_the_key_unrotated(model: onnx.ModelProto) -> None:
    write = producer(model, "present.0.key")
    write.input[1] = producer(model, write.input[1]).input[0]


def cache_the_value_one_slot_late(model: onnx.ModelProto) -> None:
    producer(model, "present.5.value").input[2] = constant(model, [1])


def hide_the_token_from_itself(model: onnx.ModelProto) -> None:
    for node in nodes(model, "LessOrEqual"):
        node.op_type = "Less"


def not_causal(layer: int) -> Edit:
    return lambda model: set_attribute(nodes(model, "Attention")[layer], "is_causal", 0)


@pytest.mark.parametrize(
    ("graph", "edit", "first"),
    [
        ("vision", keep_the_lowest, "stage1_set"),
        ("vision", keep_in_order_of_score, "stage1_set"),
        ("vision", score_the_patch_before, "stage1_set"),
        ("vision", average_over_the_softmax_axis, "stage1_set"),
        ("vision", softmax_over_rows, "vision_features"),  # the same map gives the features
        ("prefill", keep_the_lowest, "stage2_set"),
        ("prefill", keep_in_order_of_score, "stage2_set"),
        ("prefill", score_the_position_before, "stage2_set"),
        ("prefill", softmax_over_rows, "stage2_set"),
        ("prefill", renumber_kept_tokens, "prefill_logits"),
        ("prefill", cache_the_key_unrotated, "kv_cache_early"),
        ("prefill", cache_the_value_one_slot_late, "kv_cache_late"),
        ("decode", hide_the_token_from_itself, "decode_logits"),
    ],
)
def test_a_changed_node(mha: Lab, graph: str, edit: Edit, first: str) -> None:
    assert first_failure(mha, graph, edit) == first


@pytest.mark.parametrize("layer", range(6))
def test_attention_that_is_not_causal(mha: Lab, layer: int) -> None:
    first = first_failure(mha, "prefill", not_causal(layer))
    if layer == 5:  # of the last layer only the last row is used, which sees every token anyway
        assert first is None
    else:  # layer K-1 = 2 makes the scores before it attends
        assert first == "prefill_logits" or (layer < 2 and first == "stage2_set")


# One number, fed or chosen.


@pytest.mark.parametrize(
    ("name", "shift", "first"),
    [
        ("query_positions", -1, "stage2_set"),
        ("image_positions", 1, "stage2_set"),
        ("position_ids", -1, "decode_logits"),
        ("position_ids", 1, "decode_logits"),
        ("early_lengths", -1, "decode_logits"),
        ("early_lengths", 1, "decode_logits"),
        ("late_lengths", -1, "decode_logits"),
        ("late_lengths", 1, "decode_logits"),
    ],
)
def test_an_input_off_by_one(
    mha: Lab, monkeypatch: pytest.MonkeyPatch, name: str, shift: int, first: str
) -> None:
    session = open_session(mha.bundle, Runtime(threads=1))
    run = session.run

    def shifted(graph: str, feeds: dict[str, Any], caches: Any = None) -> Any:
        return run(graph, {k: v + shift if k == name else v for k, v in feeds.items()}, caches)

    monkeypatch.setattr(session, "run", shifted)
    assert mha.failed(Pipeline(mha.bundle, session))[:1] == [first]


def test_the_second_best_token(mha: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeState, "next_token", lambda state, sampler: int(np.argsort(state.logits)[-2]))
    assert mha.failed() == ["greedy_tokens"]


# One parameter of the preprocessing.


@pytest.mark.parametrize(
    ("file", "section", "name", "value"),
    [
        ("preprocessor.json", "image", "mean", [0.5, 0.4578275, 0.40821073]),
        ("preprocessor.json", "image", "resample", 2),
        ("preprocessor.json", "image", "rescale_factor", 1 / 256),
        ("preprocessor.json", "image", "shortest_edge", 97),
        ("tokenizer.json", None, "post_processor", None),  # adds BOS
    ],
)
def test_preprocessing(mha: Lab, file: str, section: str | None, name: str, value: object) -> None:
    data = json.loads((path := mha.bundle.path(file)).read_bytes())
    (data[section] if section else data)[name] = value
    with changed(path, json.dumps(data).encode()):
        assert mha.failed()[0] == "preprocessing"


# The prompt: ids, places and rows come from the checkpoint's own processor on the other side.


def moved_image(tokens: TokenizedPrompt) -> TokenizedPrompt:
    ids, places = tokens.input_ids.copy(), tokens.image_positions
    ids[0, places[0, 0]], ids[0, places[0, -1] + 1] = ids[0, places[0, -1] + 1], ids[0, places[0, 0]]
    return replace(tokens, input_ids=ids, image_positions=places + 1)


PROMPT_FAULTS: dict[str, Callable[[TokenizedPrompt], TokenizedPrompt]] = {
    "image one place later": moved_image,
    "last row only": lambda t: replace(t, query_positions=t.query_positions[:, -1:]),
    "rows before the image": lambda t: replace(t, query_positions=np.array([[0, 1]])),
}


@pytest.mark.parametrize("fault", PROMPT_FAULTS)
def test_prompt(mha: Lab, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    pipeline, change = mha.pipeline(), PROMPT_FAULTS[fault]
    tokenize = pipeline.tokenize
    monkeypatch.setattr(pipeline, "tokenize", lambda *given, **options: change(tokenize(*given, **options)))
    assert mha.failed(pipeline) == ["preprocessing"]


def test_chat_template(lab_of: Callable[[str], Lab]) -> None:
    lab = lab_of("gqa")
    pipeline = lab.pipeline()
    template = str(pipeline.prompt_spec.chat_template).replace("ASSISTANT", "USER")
    pipeline.prompt_spec = replace(pipeline.prompt_spec, chat_template=template)
    assert lab.failed(pipeline) == ["preprocessing"]
