"""bfloat16 bundles on a machine that cannot run them.

ONNX Runtime's CPU provider has no bfloat16 kernels, but it can round. Each
graph becomes a float32 one that rounds every tensor which the original holds in
bfloat16, weights and inputs included: what an engine computes whose kernels
round once, at their end.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from star_export.answer.pipeline import Pipeline
from star_export.arrays import to_device_dtype, to_float32
from star_export.bundle import Bundle, open_bundle
from star_export.contract import GRAPHS, contract
from star_export.engines import Runtime, open_session
from star_export.preprocessing.processor import read_processor
from star_export.validation.parity import ParityCheck
from star_export.validation.probes import make_probes
from star_export.validation.reference import Reference
from star_export.validation.verdicts import Tolerances

BFLOAT16, FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


def emulated(source: Path, copy: Path) -> Bundle:
    """The bfloat16 bundle ``source`` as a float32 one that rounds like it."""
    shutil.copytree(source, copy)
    bundle = open_bundle(source)
    for graph in GRAPHS:
        model = onnx.load(bundle.graph_path(graph))
        onnx.save(rounding(model), copy / "graphs" / f"{graph}.onnx")
    spec = replace(bundle.spec, dtype="float32")
    return replace(bundle, folder=copy, spec=spec, contract=contract(spec))


def rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    infos = [*graph.input, *graph.output, *graph.value_info]
    narrow = {info.name for info in infos if info.type.tensor_type.elem_type == BFLOAT16}
    for info in infos:
        if info.name in narrow:
            info.type.tensor_type.elem_type = FLOAT
    for tensor in graph.initializer:
        if tensor.data_type == BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(wide(tensor), tensor.name))
    nodes = list(rounded_nodes(graph, narrow))
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def wide(tensor: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor).astype(np.float32)


def rounded_nodes(graph: onnx.GraphProto, narrow: set[str]) -> Iterator[onnx.NodeProto]:
    def both_casts(name: str, result: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Cast", [name], [f"{result}.bits"], to=BFLOAT16),
            helper.make_node("Cast", [f"{result}.bits"], [result], to=FLOAT),
        ]

    yield from both_casts("pixel_values", "rounded_pixels") if graph.name == "vision" else ()
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == BFLOAT16:
                attribute.i = FLOAT
            if attribute.type == attribute.TENSOR and attribute.t.data_type == BFLOAT16:
                attribute.t.CopyFrom(numpy_helper.from_array(wide(attribute.t)))
        node.input[:] = ["rounded_pixels" if name == "pixel_values" else name for name in node.input]
        made = [] if node.op_type == "TensorScatter" else [o for o in node.output if o in narrow]
        node.output[:] = [f"{name}.wide" if name in made else name for name in node.output]
        yield node
        for name in made:
            yield from both_casts(f"{name}.wide", name)


@pytest.mark.parametrize(("preset", "keep"), [("mha", (115, 29)), ("gqa", (58,))])
def test_the_graphs_match_when_every_tensor_is_rounded(
    bundle: Callable[..., Path],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    preset: str,
    keep: tuple[int, ...],
) -> None:
    opened = emulated(bundle(preset, dtype="bfloat16"), tmp_path / "emulated")
    reference = Reference(checkpoint(preset))
    reference.round_weights(lambda _: "bfloat16")
    pipeline = Pipeline(opened, open_session(opened, Runtime(threads=1)))
    check = ParityCheck(pipeline, reference, read_processor(checkpoint(preset)), max_new_tokens=4)
    check.tolerances = Tolerances.load("bfloat16")
    for budget in keep:
        report = check.run(make_probes(1)[0], budget)
        assert [(s.stage, s.detail) for s in report.stages if s.status == "fail"] == []
        errors = {stage.stage: stage.error for stage in report.stages}
        # It did round: float32 would be a thousand times closer, float16 eight times.
        assert errors["vision_features"] > 2e-2
        assert errors["prefill_logits"] > 1e-2
    (features,) = pipeline.steps.encode_images(pipeline.prepare(make_probes(1)[0].pictures))
    values = features.features.numpy()
    np.testing.assert_array_equal(to_float32(to_device_dtype(values, "bfloat16"), "bfloat16"), values)
