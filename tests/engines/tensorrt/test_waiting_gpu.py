"""Work that is queued and not waited for: on every GPU it computes what one step at a time does.

And planted faults, each of which must show on the fake GPU, where work begins as late as CUDA
allows and fresh memory holds NaNs.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from star_export import contract as names
from star_export.answer.pipeline import Pipeline
from star_export.bundle import Bundle
from star_export.contract import DECODE, VISION
from star_export.engines import Runtime, open_session
from star_export.engines.session import HostArray
from star_export.engines.tensorrt import cuda
from star_export.engines.tensorrt.engine import Execution
from star_export.engines.tensorrt.session import TensorRTArray, TensorRTCaches
from star_export.engines.tensorrt.shapes import ShapeRules
from star_export.errors import DeviceError, InputError, PlatformError
from tests.fake_gpu.machine import Machine

#: Of one length: the second prefill differs from the first in where things lie, not in their shapes.
PROMPTS = ("a b c d?", "d c b a?")
Patch = pytest.MonkeyPatch


def two_slots(pipeline: Pipeline, picture: Path, *, wait: bool = False) -> dict[str, HostArray]:
    """Two pictures are seen, two prompts read into two slots, and five tokens appended to both.

    Returns:
        The tokens after the last step, its logits, and the caches.
    """
    session, rest = pipeline.session, pipeline.session.synchronize if wait else lambda: None
    caches, states = session.allocate_caches(2), []
    (image,) = pipeline.prepare(picture)
    for slot, prompt in enumerate(PROMPTS):
        vision = pipeline.steps.encode_image(replace(image, pixels=np.roll(image.pixels, slot, axis=3)))
        rest()
        rows = caches.rows(slot, slot + 1)
        tokens = pipeline.tokenize(prompt, [image])
        states.append(pipeline.steps.prefill(tokens, vision, keep=9, caches=rows))
        rest()
    lengths = np.stack([state.lengths for state in states], axis=1)  # [groups, 2]
    for step in range(5):  # an ordinary run, a capture, replays
        logits = pipeline.steps.decode_batch(caches, np.array([7 + step, 50 - step]), lengths + step)
        rest()
    assert len(set(lengths[0])) == 1
    found = {past: caches.numpy(past) for past in pipeline.session.contract[DECODE].caches()}
    return found | {"tokens": logits.argmax(), "logits": logits.numpy()}


def check(machine: Machine, bundle: Bundle, backend: str, picture: Path) -> None:
    """Two runs of each graph are queued before anybody waits."""
    gpu = Pipeline(bundle, open_session(bundle, Runtime(backend=backend)))
    found = two_slots(gpu, picture)
    if machine.fake is not None:  # a real GPU may keep other tokens where scores nearly tie
        on_cpu = Pipeline(bundle, open_session(bundle, Runtime(threads=1)))
        compare(machine, found, two_slots(on_cpu, picture))
    compare(machine, found, two_slots(gpu, picture, wait=True))
    check_expiry(gpu, picture)


def compare(machine: Machine, found: dict[str, HostArray], expected: dict[str, HostArray]) -> None:
    for name in expected:
        machine.close(found[name], expected[name])


def check_expiry(gpu: Pipeline, picture: Path) -> None:
    (image,) = gpu.prepare(picture)
    pixels = image.pixels.astype(gpu.spec.dtype)
    feeds = {names.PIXEL_VALUES: pixels, names.STAGE1_SLOTS: np.arange(gpu.spec.image_tokens)}
    first, second = (gpu.session.run(VISION, feeds)[names.IMAGE_INDICES] for _ in range(2))
    with pytest.raises(InputError, match="image_indices was overwritten by a later run of vision"):
        first.numpy()
    assert second.numpy().shape == (1, gpu.spec.image_tokens)


def test_nobody_need_wait(machine: Machine, backend: str, picture: Path) -> None:
    check(machine, machine.engines(backend, "mha"), backend, picture)


def nothing(*_: object) -> None:
    """What a fault does instead of waiting, recording, clearing."""


def staging_memory_is_reused(patch: Patch) -> None:
    patch.setattr(cuda.Event, "synchronize", nothing)


def events_are_not_recorded(patch: Patch) -> None:
    patch.setattr(cuda.Stream, "record", nothing)


def addresses_are_told_once(patch: Patch) -> None:
    bind = Execution._bind

    def told_once(self: Execution, shapes: Any, outputs: Any, addresses: Any) -> None:
        bind(self, shapes, outputs, {**addresses, **self._addresses})

    patch.setattr(Execution, "_bind", told_once)


def unchanged_shapes_hide_changed_addresses(patch: Patch) -> None:
    bind = Execution._bind

    def hidden(self: Execution, shapes: Any, outputs: Any, addresses: Any) -> None:
        if shapes != self._shapes:
            bind(self, shapes, outputs, addresses)

    patch.setattr(Execution, "_bind", hidden)


def present_lies_elsewhere(patch: Patch) -> None:
    make = TensorRTCaches.__init__

    def apart(self: TensorRTCaches, *given: Any, **named: Any) -> None:
        make(self, *given, **named)
        name = "present.0.key"
        self.apart = cuda.DeviceBuffer(self._sizes["past_key_values.0.key"], name)  # type: ignore[attr-defined]
        self.addresses[name] = self.apart.pointer  # type: ignore[attr-defined]

    patch.setattr(TensorRTCaches, "__init__", apart)


def expired_results_are_read(patch: Patch) -> None:
    place = property(lambda self: self._owner.outputs.address(self._spec.name))
    patch.setattr(TensorRTArray, "address", place)


def results_are_not_waited_for(patch: Patch) -> None:
    patch.setattr(cuda.Stream, "synchronize", nothing)


def fresh_caches_are_not_cleared(patch: Patch) -> None:
    patch.setattr(TensorRTCaches, "zero", nothing)


def outputs_have_too_little_room(patch: Patch) -> None:
    largest = ShapeRules.largest

    def small(self: ShapeRules, tensor: Any) -> int:
        return largest(self, tensor) // (4 if tensor.name == names.LOGITS else 1)

    patch.setattr(ShapeRules, "largest", small)


#: Planted faults, and how each shows: as other numbers, as a refusal, as a lost GPU, as no refusal.
FAULTS: dict[Callable[[Patch], None], tuple[type[BaseException], str]] = {
    staging_memory_is_reused: (AssertionError, "not equal"),
    events_are_not_recorded: (AssertionError, "not equal"),
    addresses_are_told_once: (AssertionError, "not equal"),
    unchanged_shapes_hide_changed_addresses: (AssertionError, "not equal"),
    present_lies_elsewhere: (PlatformError, "present.0.key must share the address of past_key_values.0.key"),
    expired_results_are_read: (pytest.fail.Exception, "DID NOT RAISE"),
    results_are_not_waited_for: (AssertionError, "not equal"),
    fresh_caches_are_not_cleared: (AssertionError, "not equal"),
    outputs_have_too_little_room: (DeviceError, "cudaErrorIllegalAddress"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_faults_show(
    fault: Callable[[Patch], None],
    lazy_gpu: Any,
    fake_engine_bundle: Callable[..., Bundle],
    picture: Path,
    monkeypatch: Patch,
) -> None:
    error, message = FAULTS[fault]
    machine = Machine(fake_engine_bundle, "sm89", lazy_gpu)
    fault(monkeypatch)
    with pytest.raises(error, match=message):
        check(machine, machine.engines("tensorrt", "mha", machine.target), "tensorrt", picture)
