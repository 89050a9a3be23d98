"""The regression gate: the mini model's answers to 200 fixed questions, pruned and unpruned.

The limits stand a little under what was measured. Each test by perturbation breaks one
thing and must fall below them. By its fourth layer the mini model has read nearly all that
it needs, so what stage 2 chooses there hardly matters to it; pruned after two layers, it does.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from star_export.answer.pipeline import Pipeline
from star_export.build import BuildOptions, build
from star_export.bundle import GRAPH_FOLDER, open_bundle
from star_export.engines import Runtime, open_session
from star_export.evaluation.answering import Bundled, Looker
from star_export.evaluation.evaluate import EvalOptions, evaluate_bundle
from star_export.evaluation.shapes import Shapes

QUESTIONS = 200
KEEPS = (64, 58, 29)
#: Least share of right answers unpruned, and of those that pruning must keep. In float32: 0.98; 0.98 at 29.
ACCURACY, RETENTION = 0.97, 0.97
#: Least share of right answers when pruned to 29 tokens after two layers. It is 0.925, and 0.815 by lot.
EARLY_ACCURACY = 0.88
#: Least share of right answers with 64 tokens and weights in few bits, of fewer questions: it is 0.99 in
#: float32 and in 8 bits, 0.98 in 4, and, with blocks of 32, 0.92 in 4 with scales that are too large by half.
FEW_BITS_ACCURACY, FEW_BITS_QUESTIONS = 0.96, 100


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_the_gate(bundle: Callable[..., Path], tmp_path: Path, dtype: str) -> None:
    found = evaluate_bundle(
        EvalOptions(
            bundle=bundle("mini", dtype=dtype),
            baseline=bundle("mini", prune=False, dtype=dtype),
            keep=KEEPS,
            limit=QUESTIONS,
            answers=tmp_path / "answers.jsonl",
            min_retention=RETENTION,
            runtime=Runtime(threads=1),
        )
    )
    assert list(found.scores) == ["unpruned", *(f"keep {keep}" for keep in KEEPS)]
    assert found.missed == ()
    assert found.scores["unpruned"].accuracy.value >= ACCURACY


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    """The mini model, pruned after two layers."""
    options = BuildOptions(
        model=str(checkpoint("mini")),
        output=tmp_path_factory.mktemp("early") / "bundle",
        keep=KEEPS[-1],
        prune_layer=2,
        max_text_tokens=128,
        max_new_tokens=32,
    )
    return build(options).folder


def share_right(folder: Path, whole: Path, questions: int = QUESTIONS) -> float:
    """Share of the gate's questions that a changed copy of ``whole`` answers right."""
    opened = replace(open_bundle(whole), folder=folder)  # open_bundle refuses changed files
    variant = Bundled(Looker(Pipeline(opened, open_session(opened, Runtime(threads=1)))), None)
    task = Shapes()
    scores = [variant.answer(task.example("test", 0, i), task).score for i in range(questions)]
    return sum(scores) / questions


def test_early_pruning_leaves_what_the_question_needs(early: Path) -> None:
    assert share_right(early, early) >= EARLY_ACCURACY


def without_sort(model: onnx.ModelProto) -> None:
    """TopKGather returns its rows best first, not in their old order."""
    (function,) = model.functions
    (sort,) = (node for node in function.node if node.op_type == "TopK" and node.output[0] == "indices")
    at = list(function.node).index(sort)
    function.node.remove(sort)
    function.node.insert(at, helper.make_node("Identity", ["best"], ["indices"]))


def by_lot(model: onnx.ModelProto) -> None:
    """TopKGather ranks by noise; tokens that must stay still do."""
    (function,) = model.functions
    (where,) = (node for node in function.node if node.op_type == "Where")
    where.input[2] = "noisy"
    noise = [
        helper.make_node("Constant", [], ["large"], value_float=1e6),
        helper.make_node("Greater", ["scores", "large"], ["fixed"]),
        helper.make_node("Constant", [], ["fast"], value_float=1e7),  # many turns from score to score
        helper.make_node("Mul", ["scores", "fast"], ["angle"]),
        helper.make_node("Sin", ["angle"], ["noise"]),
        helper.make_node("Where", ["fixed", "scores", "noise"], ["noisy"]),
    ]
    nodes = [*noise, *function.node]
    del function.node[:]
    function.node.extend(nodes)


def upwards(makers: dict[str, onnx.NodeProto], node: onnx.NodeProto) -> Iterator[tuple[onnx.NodeProto, str]]:
    """A node's inputs, then those of what makes them, and so on, each with its reader."""
    nodes = [node]
    for reader in nodes:
        for name in reader.input:
            yield reader, name
            nodes += [makers[name]] if name in makers else []


def over_the_own_axis(model: onnx.ModelProto) -> None:
    """Scores as the paper prints them: averaged over the axis of their own softmax."""
    (gather,) = (node for node in model.graph.node if node.op_type == "TopKGather")
    makers = {name: node for node in model.graph.node for name in node.output}
    reader, node = next(
        (reader, makers[name])
        for reader, name in upwards(makers, makers[gather.input[1]])
        if name in makers and makers[name].op_type == "Softmax"
    )
    # A softmax of its own, since vision also attends with the sound one.
    swapped = helper.make_node("Softmax", [node.input[0]], ["swapped"], name="swapped", axis=-2)
    reader.input[list(reader.input).index(node.output[0])] = "swapped"
    model.graph.node.insert(list(model.graph.node).index(node), swapped)


@pytest.mark.parametrize("fault", [without_sort, by_lot, over_the_own_axis])
def test_a_fault_falls_through_the_gate(
    early: Path, tmp_path: Path, fault: Callable[[onnx.ModelProto], None]
) -> None:
    folder = shutil.copytree(early, tmp_path / "broken")
    for graph in ("vision", "prefill"):
        path = folder / GRAPH_FOLDER / f"{graph}.onnx"
        model = onnx.load(path, load_external_data=False)
        fault(model)
        path.write_bytes(model.SerializeToString())
    right = share_right(folder, early)
    assert right < EARLY_ACCURACY, f"{fault.__name__} leaves {right:.3f}"


@pytest.fixture(scope="module")
def few_bits(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> Callable[[str], Path]:
    """``few_bits("int4")``: the mini model in few bits, pruned as it is best."""

    @cache
    def get(kind: str) -> Path:
        options = BuildOptions(
            model=str(checkpoint("mini")),
            output=tmp_path_factory.mktemp(kind) / "bundle",
            schedule="fast-64",
            proportional=True,
            quantize=kind,
            quantize_vision=True,
            max_text_tokens=128,
            max_new_tokens=32,
        )
        return build(options).folder

    return get


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_few_bits_answer_as_float32_does(few_bits: Callable[[str], Path], kind: str) -> None:
    folder = few_bits(kind)
    assert share_right(folder, folder, FEW_BITS_QUESTIONS) >= FEW_BITS_ACCURACY


Tensor = np.ndarray[Any, np.dtype[np.uint8]]


def scales_too_large(name: str, values: Tensor) -> None:
    """Every scale by half."""
    if name.endswith("_scale"):
        values.view(np.float32)[:] *= 1.5


def halves_of_bytes_swapped(name: str, values: Tensor) -> None:
    """Integers of 4 bits in the order that others have them in."""
    if name.endswith("proj.weight"):
        values[:] = values << 4 | values >> 4


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("int8", scales_too_large), ("int4", scales_too_large), ("int4", halves_of_bytes_swapped)],
)
def test_broken_weights_fall_through_the_gate(
    few_bits: Callable[[str], Path], tmp_path: Path, kind: str, fault: Callable[[str, Tensor], None]
) -> None:
    whole = few_bits(kind)
    folder = shutil.copytree(whole, tmp_path / "broken")
    path = folder / GRAPH_FOLDER / "decoder.safetensors"
    file = np.memmap(path, np.uint8, mode="r+")
    start = 8 + int.from_bytes(file[:8].tobytes(), "little")
    header = json.loads(file[8:start].tobytes())
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            fault(name, np.asarray(file[begin:end]))
    file.flush()
    right = share_right(folder, whole, FEW_BITS_QUESTIONS)
    assert right < FEW_BITS_ACCURACY, f"{fault.__name__} leaves {right:.2f}"
