"""Sessions on a GPU, against ONNX Runtime on the CPU: the same bundle, the same inputs.

On a real GPU both sides compute in float16 and round differently, so arrays are compared with the
bundle's own tolerance and tokens where the best one leads by more than that. The fake GPU computes
with ONNX Runtime: not a bit may differ. It shows what our side of the border does, and nothing of
NVIDIA's.
"""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from star_export import contract as names
from star_export.answer.pipeline import Pipeline
from star_export.answer.sampling import Sampling
from star_export.answer.steps import DecodeState
from star_export.bundle import Bundle
from star_export.contract import DECODE, PREFILL, past_names
from star_export.engines import Runtime, open_session
from star_export.engines.session import HostArray, Session
from star_export.engines.tensorrt import cuda
from star_export.engines.tensorrt.argmax import Argmax
from star_export.engines.tensorrt.session import TensorRTCaches, TensorRTSession
from star_export.errors import BundleError, InputError, SettingsError
from star_export.show.scores import ScoreReader
from tests.fake_gpu.kernels import Argmax as FakeArgmax
from tests.fake_gpu.kernels import compile_argmax
from tests.fake_gpu.machine import ATOL, Machine, nearly_equal

SHORT, LONG = "What is in the picture?", "Where is the dog, and what is written on the sign? " * 2


@pytest.fixture(scope="module", params=["mha", "gqa"])
def bundle_(request: pytest.FixtureRequest, backend: str, machine: Machine) -> Bundle:
    return machine.engines(backend, request.param)


@pytest.fixture(scope="module")
def session(bundle_: Bundle, backend: str) -> TensorRTSession:
    return TensorRTSession(bundle_, backend)


@pytest.fixture(scope="module")
def gpu(bundle_: Bundle, session: TensorRTSession) -> Pipeline:
    return Pipeline(bundle_, session)


@pytest.fixture(scope="module")
def cpu(bundle_: Bundle) -> Pipeline:
    return Pipeline(bundle_, open_session(bundle_, Runtime(threads=1)))


def prefilled(pipeline: Pipeline, picture: Path, prompt: str, keep: int = 64) -> DecodeState:
    images = pipeline.prepare(picture)
    visions = pipeline.steps.encode_images(images)
    return pipeline.steps.prefill(pipeline.tokenize(prompt, images), *visions, keep=keep)


def test_vision(machine: Machine, gpu: Pipeline, cpu: Pipeline, picture: Path) -> None:
    found, expected = (p.steps.encode_image(*p.prepare(picture)) for p in (gpu, cpu))
    both, first, second = np.intersect1d(found.indices, expected.indices, return_indices=True)
    # Patches whose scores nearly tie may differ.
    assert len(both) >= (0.98 if machine.fake is None else 1.0) * len(expected.indices)
    machine.close(found.features.numpy()[0, first], expected.features.numpy()[0, second])


def clear_budget(bundle: Bundle, picture: Path, prompt: str, most: int) -> int:
    """A budget of at most ``most`` and at least half of it that no two scores nearly tie at."""
    ranks = np.sort(ScoreReader(bundle).read(picture, prompt, max_new_tokens=1).stages[-1].scores)[::-1]
    budgets = np.arange(max(1, most // 2), most + 1)
    gaps = ranks[budgets - 1] / ranks[budgets] - 1
    assert gaps.max() > 0.005, "no budget is clear enough in float16"
    return int(budgets[gaps.argmax()])


@pytest.mark.parametrize(("prompt", "most"), [(SHORT, 64), (LONG, 288), (SHORT, 1)])
def test_prefill_and_decode(
    machine: Machine,
    bundle_: Bundle,
    gpu: Pipeline,
    cpu: Pipeline,
    picture: Path,
    prompt: str,
    most: int,
) -> None:
    """Features of the CPU on both sides, so that both must prune the same tokens."""
    images = cpu.prepare(picture)
    (vision,) = cpu.steps.encode_images(images)
    keep = clear_budget(bundle_, picture, prompt, most) if machine.fake is None else most
    states = [p.steps.prefill(p.tokenize(prompt, images), vision, keep=keep) for p in (gpu, cpu)]
    found, expected = states
    assert found.kept_positions.tolist() == expected.kept_positions.tolist()
    machine.close(found.logits, expected.logits)
    for layer in range(gpu.spec.model.text.num_layers):
        rows = found.lengths[gpu.spec.group(layer)]
        for name in past_names(layer):
            machine.close(found.caches.numpy(name)[:, :, :rows], expected.caches.numpy(name)[:, :, :rows])
    for token in (7, 11, 13, 17):  # an ordinary run, a capture, replays
        for pipeline, state in zip((gpu, cpu), states, strict=True):
            pipeline.steps.decode(state, token)
        machine.close(found.logits, expected.logits)


def test_decode_writes_one_row_in_place(gpu: Pipeline, picture: Path) -> None:
    state = prefilled(gpu, picture, SHORT)
    late = past_names(gpu.spec.groups[1].first)[0]
    for token in (7, 11, 13):
        before = state.caches.numpy(late)
        gpu.steps.decode(state, token)
        changed = np.flatnonzero((before != state.caches.numpy(late)).any(axis=(0, 1, 3)))
        assert changed.tolist() == [state.lengths[-1] - 1]


def test_a_cuda_graph_changes_nothing(bundle_: Bundle, backend: str, picture: Path) -> None:
    logits = []
    for cuda_graph in (True, False):
        pipeline = Pipeline(bundle_, TensorRTSession(bundle_, backend, cuda_graph=cuda_graph))
        state = prefilled(pipeline, picture, SHORT)
        steps = []
        for token in (7, 11, 13, 17):
            pipeline.steps.decode(state, token)
            steps.append(state.logits)
        logits.append(np.stack(steps))
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-3 if backend == "tensorrt" else ATOL)


def test_decode_is_replayed(session: TensorRTSession, gpu: Pipeline, backend: str, picture: Path) -> None:
    if backend == "tensorrt-rtx":
        pytest.skip("TensorRT-RTX captures by itself")
    state = prefilled(gpu, picture, SHORT)
    assert isinstance(state.caches, TensorRTCaches)
    for _ in range(2):
        gpu.steps.decode(state, 7)
    graph = state.caches.execution._graph
    assert graph is not None
    other = session.allocate_caches(batch=2)  # another batch has a context and a graph of its own
    for _ in range(3):
        session.run(DECODE, batch_feeds(gpu, [state, state]), other)
    gpu.steps.decode(prefilled(gpu, picture, LONG), 7)  # in the same caches
    assert state.caches.execution._graph is graph
    assert other.execution._graph not in (None, graph)


def batch_feeds(pipeline: Pipeline, states: list[DecodeState]) -> dict[str, HostArray]:
    lengths = np.stack([state.lengths for state in states], axis=1)  # [groups, B]
    feeds = {
        names.INPUT_IDS: np.full((len(states), 1), 7),
        names.POSITION_IDS: np.array([[state.position] for state in states]),
    }
    return feeds | dict(zip(names.lengths_names(pipeline.spec), lengths, strict=True))


def test_decode_of_a_batch_equals_single_sequences(
    session: TensorRTSession, gpu: Pipeline, picture: Path
) -> None:
    together = session.allocate_caches(batch=2)
    states, alone = [], []
    for row, prompt in enumerate((SHORT, LONG)):
        state = prefilled(gpu, picture, prompt)
        assert isinstance(state.caches, TensorRTCaches)
        for past in gpu.session.contract[DECODE].caches():
            copy_row(session, state.caches, together, past, row)
        states.append(replace(state, caches=together))
        gpu.steps.decode(state, 7)
        alone.append(state.logits)
    output = session.run(DECODE, batch_feeds(gpu, states), together)[names.LOGITS]
    nearly_equal(output.numpy(), np.stack(alone))
    assert output.argmax().tolist() == output.numpy().argmax(axis=-1).tolist()


def copy_row(
    session: TensorRTSession, source: TensorRTCaches, to: TensorRTCaches, name: str, row: int
) -> None:
    """Put a single sequence's cache into one row of a batch's."""
    data = source.numpy(name)
    staging = cuda.PinnedBuffer(data.nbytes)
    staging.array[: data.nbytes] = data.reshape(-1).view(np.uint8)
    session.stream.upload(to.addresses[name] + row * data.nbytes, staging.pointer, data.nbytes)
    session.stream.synchronize()


def test_greedy_answers(gpu: Pipeline, cpu: Pipeline, picture: Path) -> None:
    found, expected = (p.generate(picture, SHORT, max_new_tokens=8).result() for p in (gpu, cpu))
    state = prefilled(cpu, picture, SHORT)
    for got, want in zip(found.token_ids, expected.token_ids, strict=False):
        if got != want:
            margin = state.logits[want] - state.logits[got]
            assert margin < ATOL, f"token {got} instead of {want}, which leads by {margin}"
            break  # from here on the two sides answer different texts
        cpu.steps.decode(state, want)


def test_answers_repeat_and_leave_no_trace(gpu: Pipeline, picture: Path) -> None:
    before = gpu.generate(picture, SHORT).result()
    gpu.generate(picture, LONG, keep=288).result()
    after = gpu.generate(picture, SHORT).result()
    assert (before.text, before.stage2_indices) == (after.text, after.stage2_indices)


def test_sampling_reads_the_logits(gpu: Pipeline, picture: Path) -> None:
    hot = Sampling(temperature=2.0, seed=1)
    answers = [gpu.generate(picture, SHORT, sampling=hot, max_new_tokens=6).result() for _ in range(2)]
    assert answers[0].token_ids == answers[1].token_ids


@pytest.fixture(scope="module")
def cpu_kernel(tmp_path_factory: pytest.TempPathFactory) -> FakeArgmax:
    return compile_argmax(tmp_path_factory.mktemp("argmax"))


@pytest.fixture
def kernel(machine: Machine, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the fake GPU, the kernel's own source instead of NumPy, which is quicker."""
    if machine.fake is not None:
        monkeypatch.setattr(machine.fake, "argmax", request.getfixturevalue("cpu_kernel"))


@pytest.mark.usefixtures("kernel")
def test_argmax_is_numpys() -> None:
    stream, device = cuda.Stream(), cuda.require_device()
    argmax = Argmax(stream, device.capability, max_rows=4)
    random = np.random.default_rng(0)
    for vocab in (1, 511, 512, 513, 32064, 128_256):
        logits = random.integers(0, 50, (4, vocab)).astype(np.float32)
        logits[1, vocab // 2 :] = np.nan
        logits[3, vocab // 4] = np.inf
        logits[2] = -0.0
        logits[2, vocab // 3] = 0.0
        buffer, staging = cuda.DeviceBuffer(logits.nbytes, "logits"), cuda.PinnedBuffer(logits.nbytes)
        staging.array[: logits.nbytes] = logits.reshape(-1).view(np.uint8)
        stream.upload(buffer.pointer, staging.pointer, logits.nbytes)
        best = logits.argmax(axis=-1)
        assert argmax(buffer.pointer, *logits.shape).tolist() == [best[0], -1, best[2], -1]


def test_overwritten_results_are_refused(gpu: Pipeline, picture: Path) -> None:
    (image,) = gpu.prepare(picture)
    first = gpu.steps.encode_image(image)
    kept = first.features.numpy()
    second = gpu.steps.encode_image(image)
    with pytest.raises(InputError, match="image_features was overwritten by a later run of vision"):
        gpu.steps.prefill(gpu.tokenize(SHORT, [image]), first, keep=8)
    assert np.array_equal(second.features.numpy(), kept)


def test_features_of_another_session_are_copied(
    machine: Machine, bundle_: Bundle, backend: str, gpu: Pipeline, picture: Path
) -> None:
    other: Session = TensorRTSession(bundle_, backend)
    images = gpu.prepare(picture)
    (vision,) = Pipeline(bundle_, other).steps.encode_images(images)
    found = gpu.steps.prefill(gpu.tokenize(SHORT, images), vision, keep=8).logits
    machine.close(found, prefilled(gpu, picture, SHORT, keep=8).logits)


def test_shapes_outside_the_profile(session: TensorRTSession, gpu: Pipeline, picture: Path) -> None:
    with pytest.raises(SettingsError, match="the decode engine takes 1 to 4 sequences, got 5"):
        session.allocate_caches(batch=5)
    images = gpu.prepare(picture)
    (vision,) = gpu.steps.encode_images(images)
    tokens = gpu.tokenize(SHORT, images)
    with pytest.raises(SettingsError, match=r"prefill: stage2_slots has shape \(289,\)"):
        gpu.steps.prefill(tokens, vision, keep=289)
    assert PREFILL in session.contract
    gpu.steps.prefill(tokens, vision, keep=288)


def held(machine: Machine) -> tuple[int, int]:
    """Allocations, pinned ones too, and streams, events, graphs and modules; only a fake GPU tells."""
    gc.collect()
    return (0, 0) if machine.fake is None else (len(machine.fake.memory.blocks), len(machine.fake.objects))


def test_a_closed_session_frees_its_memory_and_is_of_no_use(
    machine: Machine, backend: str, picture: Path
) -> None:
    """The first time around, the driver and TensorRT allocate what they keep for ever."""
    bundle, before, free = machine.engines(backend, "mha"), held(machine), []
    for _ in range(3):
        with Pipeline(bundle, TensorRTSession(bundle, backend)) as pipeline:
            session = pipeline.session
            rows = session.allocate_caches(2).rows(1, 2)  # which is all that is left of the two
            pipeline.generate(picture, SHORT, max_new_tokens=4).result()
            images = pipeline.prepare(picture)
            (vision,) = pipeline.steps.encode_images(images)
            state = pipeline.steps.prefill(pipeline.tokenize(SHORT, images), vision, keep=8, caches=rows)
            pipeline.steps.decode(state, state.best_token())
            inside = cuda.memory()[0]
        free.append(cuda.memory()[0])
        assert free[-1] - inside > session.spec.slot_bytes
    assert free[2] == free[1]
    assert held(machine) == before
    cache = next(iter(session.contract[DECODE].caches()))
    for use in (
        vision.features.numpy,
        lambda: state.logits,
        state.best_token,
        rows.zero,
        lambda: rows.numpy(cache),
        session.synchronize,
        session.allocate_caches,
        lambda: pipeline.steps.decode(state, 1),
    ):
        with pytest.raises(InputError, match="this session is closed"):
            use()
    pipeline.close()  # a second time does nothing


def test_engines_for_another_gpu(backend: str, machine: Machine) -> None:
    if backend == "tensorrt":
        pytest.skip("builds for this machine's GPU only")
    here, target = machine.target, "sm120" if machine.target != "sm120" else "sm89"
    with pytest.raises(BundleError, match=f"were built for {target}, this GPU is {here}.*--target {here}"):
        open_session(machine.engines(backend, "mha", target), Runtime(backend=backend))
