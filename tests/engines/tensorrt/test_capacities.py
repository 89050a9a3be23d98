"""Engines of several sizes of KV caches: what is built, what a request takes, what it answers."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from star_export.answer.pipeline import Pipeline
from star_export.build import add_engines
from star_export.bundle import Bundle, open_bundle
from star_export.contract import DECODE, PREFILL, past_names
from star_export.engines import Runtime, open_session
from star_export.engines.tensorrt import weights
from star_export.engines.tensorrt.builder import EngineOptions, check_options, options_like
from star_export.engines.tensorrt.facts import read_facts
from star_export.engines.tensorrt.profiles import tuned_ranges
from star_export.engines.tensorrt.session import TensorRTSession
from star_export.errors import BundleError, PlatformError, SettingsError
from star_export.serving.scheduler import Scheduler
from star_export.specs import ExportSpec
from tests.fake_gpu.device import FakeGpu
from tests.fake_gpu.tensorrt import FakeContext, FakeEngine

RTX = "tensorrt-rtx"
ROOMS = (64, 96)
SHORT, LONGER, LONGEST = "What is this?", "What is this?" + " Why?" * 15, "What is this?" + " Why?" * 20


@pytest.fixture
def spec(bundle: Callable[..., Path]) -> ExportSpec:
    return open_bundle(bundle("mha", dtype="float16")).spec


@pytest.fixture
def engines(lazy_gpu: FakeGpu, fake_engine_bundle: Callable[..., Bundle]) -> Callable[[str], Bundle]:
    return lambda backend: fake_engine_bundle(backend, "mha", "sm89", capacities=ROOMS)


def answer(pipeline: Pipeline, picture: Path, prompt: str) -> tuple[int, ...]:
    return pipeline.generate(picture, prompt, max_new_tokens=6).result().token_ids


@pytest.mark.parametrize("backend", ["tensorrt", RTX])
def test_a_request_takes_the_smallest_that_fits(
    engines: Callable[[str], Bundle],
    lazy_gpu: FakeGpu,
    backend: str,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same contexts again when it is its turn again, and all weights once."""
    contexts, create = list[FakeEngine](), FakeEngine.create_execution_context

    def counted(self: FakeEngine, config: Any) -> FakeContext:
        contexts.append(self)
        return create(self, config)

    monkeypatch.setattr(FakeEngine, "create_execution_context", counted)
    bundle, everything = engines(backend), lazy_gpu.memory.free_bytes
    cpu = Pipeline(bundle, open_session(bundle, Runtime(backend="onnxruntime", threads=1)))
    with TensorRTSession(bundle, backend) as session:
        gpu, spec = Pipeline(bundle, session), bundle.spec
        assert len(weights.LOADED) == 1
        for prompt, room in (
            (SHORT, 64),
            (LONGEST, spec.room),
            (SHORT, 64),
            (LONGER, 96),
            (LONGEST, spec.room),
        ):
            assert answer(gpu, picture, prompt) == answer(cpu, picture, prompt)
            capacities, caches = gpu.steps._own or ((), None)
            assert capacities == spec.capacities_with(room)
            assert caches is not None
            for layer in (0, spec.model.text.num_layers - 1):
                shape = caches.numpy(past_names(layer)[0]).shape
                assert shape[2] == capacities[spec.group(layer)]
        assert len(contexts) == 1 + 3 + 3  # vision, prefill and decode
        assert len({id(engine) for engine in contexts}) == len(contexts)
        del caches
    assert lazy_gpu.memory.free_bytes == everything


def test_what_is_needed_decides(engines: Callable[[str], Bundle]) -> None:
    """In every layer group, to the token."""
    bundle = engines(RTX)
    session, spec = open_session(bundle, Runtime(backend=RTX)), bundle.spec
    for room, above in ((64, 96), (96, spec.room)):
        fits = spec.capacities_with(room)
        assert session.capacities(fits) == session.capacities([n - 1 for n in fits]) == fits
        for more in ((1, 0), (0, 1)):
            needed = [n + one for n, one in zip(fits, more, strict=True)]
            assert session.capacities(needed) == spec.capacities_with(above)
    assert session.capacities(spec.capacities) == spec.capacities


def test_batches_have_the_whole_room_or_less(engines: Callable[[str], Bundle], picture: Path) -> None:
    bundle = engines(RTX)
    cpu = Pipeline(bundle, open_session(bundle, Runtime(backend="onnxruntime", threads=1)))
    gpu = Pipeline(bundle, open_session(bundle, Runtime(backend=RTX)))
    with Scheduler(gpu, slots=2) as scheduler:
        tickets = [
            scheduler.submit(gpu.request(picture, prompt, max_new_tokens=6)) for prompt in (SHORT, LONGEST)
        ]
        texts = ["".join(ticket) for ticket in tickets]
    assert texts == [
        cpu.generate(picture, prompt, max_new_tokens=6).result().text for prompt in (SHORT, LONGEST)
    ]
    small = gpu.session.allocate_caches(2, bundle.spec.capacities_with(64))
    images = gpu.prepare([picture])
    visions = gpu.steps.encode_images(images)
    state = gpu.steps.prefill(gpu.tokenize(SHORT, images), *visions, caches=small.rows(1, 2))
    assert int(state.logits.argmax()) == answer(cpu, picture, SHORT)[0]


def test_an_engine_of_another_size_is_refused(engines: Callable[[str], Bundle], picture: Path) -> None:
    bundle = engines(RTX)
    entry = bundle.manifest["engines"][RTX]
    small = entry["smaller"][0]
    files = {**small["files"], DECODE: entry["files"][DECODE]}
    entry = {**entry, "smaller": [{**small, "files": files}]}
    wrong = replace(bundle, manifest=bundle.manifest | {"engines": {RTX: entry}})
    pipeline = Pipeline(wrong, open_session(wrong, Runtime(backend=RTX)))
    with pytest.raises(PlatformError, match=r"refuses shape .* of past_key_values\.0\.key \(decode"):
        answer(pipeline, picture, SHORT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda small: [small[1], small[0]], "its smaller engines are not in order"),
        (lambda small: [small[0], small[0]], "its smaller engines are not in order"),
        (lambda small: [{**small[0], "room": 160}], "its smaller engines are not in order"),
        (lambda small: [{**small[0], "room": 65}], "its profiles are not those of the bundle's graphs"),
        (lambda small: [{**small[0], "profiles": {}}], "its profiles are not those of the bundle's graphs"),
        (lambda small: [{**small[0], "files": {PREFILL: small[0]["files"][PREFILL]}}], "its files are not"),
        (lambda small: [{**small[0], "files": dict.fromkeys((PREFILL, DECODE), "x")}], "its files are not"),
        (lambda small: [{**small[0], "room": 0}], r"smaller\[0\]\.room: expected int >= 1"),
    ],
)
def test_a_damaged_manifest(
    engines: Callable[[str], Bundle], change: Callable[[Any], Any], message: str
) -> None:
    bundle = engines(RTX)
    entry = bundle.manifest["engines"][RTX]
    entry = {**entry, "smaller": change(entry["smaller"])}
    with pytest.raises(BundleError, match=message):
        read_facts(replace(bundle, manifest=bundle.manifest | {"engines": {RTX: entry}}), RTX)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacities": (96, 64)}, "capacities=96,64 must ascend, each number once"),
        ({"capacities": (64, 64)}, "capacities=64,64 must ascend, each number once"),
        (
            {"capacities": (63,)},
            "capacities=63: 63 is too small, .* up to 64 tokens at once; give at least 64",
        ),
        ({"capacities": (64, 161)}, "capacities=64,161: 161 is too large, .* give at most 160, or build it"),
        ({"capacities": (64,), "weights": "baked"}, "every engine once more; .* share them: weights=shared"),
        ({"capacities": (64,), "weight_streaming": True}, "capacities would put .* into every engine"),
    ],
)
def test_numbers_that_cannot_be_had(spec: ExportSpec, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_options(EngineOptions(backend=RTX, **options), spec)


def test_old_graphs_have_one_capacity(spec: ExportSpec) -> None:
    with pytest.raises(
        SettingsError, match=r"capacities=64: these graphs are older .*; build the bundle again"
    ):
        check_options(EngineOptions(backend=RTX, capacities=(64,)), replace(spec, fixed_capacities=True))


@pytest.mark.parametrize("room", [64, 100, 159])
def test_profiles_of_less_room(spec: ExportSpec, room: int) -> None:
    """Caches as they are told; prompts that they hold; all else as ever."""
    whole, found = tuned_ranges(spec, 4), tuned_ranges(spec, 4, room)
    first, last = spec.capacities_with(room)
    assert (found.pop("L1"), found.pop("L2")) == ((first,) * 3, (last,) * 3)
    low, typical, high = found.pop("S")
    assert (low, high) == (whole["S"][0], min(whole["S"][2], first))
    assert low <= typical <= high
    assert found == {name: sizes for name, sizes in whole.items() if name in found}


@pytest.mark.parametrize("quantize", [None, pytest.param("int4", marks=pytest.mark.slow)])
def test_they_build(bundle: Callable[..., Path], tmp_path: Path, quantize: str | None) -> None:
    folder = Path(shutil.copytree(bundle("mha", dtype="float16", quantize=quantize), tmp_path / "b"))
    room = open_bundle(folder).spec.room
    report = add_engines(folder, EngineOptions(backend=RTX, targets=("sm89",), capacities=(64, room)))
    names = ("prefill-64", "decode-64", "vision", "prefill", "decode")
    assert [step.step for step in report.steps] == [f"tensorrt-rtx {name} engine" for name in names]
    facts = read_facts(open_bundle(folder, verify=True), RTX)
    assert [engines.room for engines in facts.smaller] == [64]
    assert options_like(facts).capacities == (64,)
    add_engines(folder, EngineOptions(backend=RTX, targets=("sm89",)))
    assert not list(folder.rglob("*-64.engine"))
