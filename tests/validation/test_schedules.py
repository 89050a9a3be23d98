"""Schedules of other stages than STAR's two, proven as STAR is: stage by stage against PyTorch."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from filelock import FileLock
from onnx import helper

from star_export import build as building
from star_export.answer.pipeline import Pipeline, load
from star_export.bundle import open_bundle
from star_export.contract import DECODE
from star_export.engines import Runtime, open_session
from star_export.preprocessing.processor import read_processor
from star_export.serving.scheduler import Scheduler
from star_export.specs import RECEIVED, TEXT, Schedule, Stage
from star_export.validation.check import check_bundle
from star_export.validation.parity import ParityCheck
from star_export.validation.probes import make_probes
from star_export.validation.reference import Reference

Three = Callable[[str], Path]


def stage(after_layer: int, tokens: int, max_tokens: int) -> Stage:
    score = TEXT if after_layer else RECEIVED
    return Stage(after_layer=after_layer, score=score, tokens=tokens, max_tokens=max_tokens)


SCHEDULES: dict[str, Schedule] = {
    "vicuna": (stage(0, 58, 58), stage(1, 30, 40), stage(2, 12, 29)),  # of 64 patches, 3 layers
    "gqa": (stage(1, 200, 300), stage(2, 100, 150), stage(3, 50, 99)),  # of 576, 4 layers
}


@pytest.fixture(scope="module")
def three(checkpoint: Callable[[str], Path], shared: Path) -> Three:
    """A bundle with the schedule of the preset. Do not write into it."""

    def get(preset: str) -> Path:
        folder = shared / f"{preset}-three-stages"
        with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
            if not folder.exists():
                resolve = building.resolve_spec
                patch.setattr(
                    building,
                    "resolve_spec",
                    lambda *given: replace(resolve(*given), schedule=SCHEDULES[preset]),
                )
                options = building.BuildOptions(
                    model=str(checkpoint(preset)),
                    output=folder,
                    prune=False,
                    max_text_tokens=64,
                    max_new_tokens=8,
                )
                building.build(options)
        return folder

    return get


@pytest.mark.parametrize("preset", ["vicuna", pytest.param("gqa", marks=pytest.mark.slow)])
def test_every_stage_is_compared(three: Three, tmp_path: Path, preset: str) -> None:
    folder = Path(shutil.copytree(three(preset), tmp_path / "bundle"))
    last = SCHEDULES[preset][-1]
    budgets = (last.tokens, last.max_tokens, 1)
    report = check_bundle(folder, probes=make_probes(2), max_new_tokens=3, keep=budgets)
    assert report.passed
    inside = sum(stage.after_layer > 0 for stage in SCHEDULES[preset])
    caches = ["early", *(f"group{number}" for number in range(2, inside + 1)), "late"]
    for case in report.cases:
        assert [found.stage for found in case.stages] == [
            *("preprocessing", "vision_features", "stage1_set"),
            *(f"stage{number}_set" for number in range(2, inside + 2)),
            "prefill_logits",
            *(f"kv_cache_{name}" for name in caches),
            *("decode_logits", "append_logits", "greedy_tokens"),
        ]


def test_a_request_chooses_the_last_budget(three: Three) -> None:
    pipeline = load(three("vicuna"), threads=1)
    request = pipeline.request(make_probes(1)[0].pictures, "What?", keep=20, max_new_tokens=4)
    vision = pipeline.steps.encode_image(request.images[0])
    state = pipeline.steps.prefill(request.tokens, vision, keep=request.keep)
    text = request.tokens.text_tokens
    assert state.lengths.tolist() == [text + 58, text + 30, text + 20]
    assert [len(positions) for positions in state.stage_positions] == [text + 30, text + 20]
    assert set(state.kept_positions) < set(state.stage_positions[0])
    result = pipeline.generate(make_probes(1)[0].pictures, "What?", keep=20, max_new_tokens=4).result()
    with Scheduler(pipeline, slots=2) as scheduler:
        tickets = [scheduler.submit(request) for _ in range(2)]
        assert {ticket.answer().token_ids for ticket in tickets} == {result.token_ids}
        usage = tickets[0].answer().usage
    assert usage is not None
    assert usage.kv_bytes == pipeline.spec.sequence_bytes(state.lengths.tolist())


def failed(pipeline: Pipeline, source: Path) -> list[str]:
    check = ParityCheck(pipeline, Reference(source), read_processor(source), max_new_tokens=2)
    case = check.run(make_probes(1)[0], pipeline.spec.keep)
    return [stage.stage for stage in case.stages if stage.status == "fail"]


def test_lengths_of_the_group_between_count(
    three: Three, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load(three("vicuna"), threads=1)
    run = pipeline.session.run

    def shifted(graph: str, feeds: dict[str, Any], caches: Any = None) -> Any:
        if graph == DECODE:
            feeds = {**feeds, "group2_lengths": feeds["group2_lengths"] - 1}
        return run(graph, feeds, caches)

    monkeypatch.setattr(pipeline.session, "run", shifted)
    assert failed(pipeline, checkpoint("vicuna"))[:1] == ["decode_logits"]


def test_the_query_rows_of_the_last_stage_count(
    three: Three, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = open_bundle(Path(shutil.copytree(three("vicuna"), tmp_path / "bundle")))
    path = bundle.graph_path("prefill")
    model = onnx.load(path, load_external_data=False)
    (move,) = (n for n in model.graph.node if n.op_type == "Sub" and "query_positions" in n.input)
    move.input[0] = "rows_before"
    model.graph.initializer.append(helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1]))
    model.graph.node.insert(0, helper.make_node("Sub", ["query_positions", "one"], ["rows_before"]))
    onnx.save(model, path)
    assert failed(Pipeline(bundle, open_session(bundle, Runtime(threads=1))), checkpoint("vicuna"))[:1] == [
        "stage3_set"
    ]
