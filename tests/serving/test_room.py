"""KV caches as long as the longest running request needs: more requests, each with its own answer."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.request import Request
from star_export.contract import DECODE, INPUT_IDS, PREFILL
from star_export.errors import DeadlineError, NonFiniteError, SettingsError
from star_export.serving.scheduler import Scheduler
from star_export.serving.slots import Slots
from tests.serving.gate import Gate, wait_until

PICTURE = Path(__file__).parents[2] / "docs/shapes.png"
LONG = 32  # the bundles' max_new_tokens


@pytest.fixture(scope="module")
def mha(bundle: Callable[..., Path]) -> Pipeline:
    """Random weights: answers are nonsense, and long."""
    return load(bundle("mha"), threads=1)


@pytest.fixture(scope="module")
def scheduled(bundle: Callable[..., Path]) -> Pipeline:
    """Three layer groups whose caches are mostly text."""
    return load(bundle("vicuna", schedule="30@0,20@1,10@2", stage1="peaks", stage2="last"), threads=1)


class Sizes:
    """Every size that a session's caches have, the first included."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spec = pipeline.spec
        self.seen: list[tuple[int, int, int]] = []  # bytes of a row, rows, rows that moved
        resize = pipeline.session.resize_caches

        def resizing(caches: Any, batch: int, capacities: Any, *, rows: Sequence[int] = ()) -> None:
            self.seen.append((self.spec.sequence_bytes(capacities), batch, len(rows)))
            resize(caches, batch, capacities, rows=rows)

        monkeypatch.setattr(pipeline.session, "resize_caches", resizing)

    @property
    def moves(self) -> Iterator[tuple[int, int]]:
        """Bytes of a row before and after, whenever sequences moved."""
        return (
            (before, after)
            for (before, *_), (after, _, moved) in zip(self.seen, self.seen[1:], strict=False)
            if moved
        )


def small(pipeline: Pipeline, number: int = 0) -> Request:
    prompt = ("What?", "Where is it?", "Why?")[number % 3]
    return pipeline.request(PICTURE, prompt, keep=1 + number % 3, max_new_tokens=12 + number)


def large(pipeline: Pipeline, number: int = 0) -> Request:
    return pipeline.request(PICTURE, "Hm " * 33 + "?" * number, max_new_tokens=20 - number)


@pytest.mark.parametrize(("preset", "overlap"), [("mha", False), ("mha", True), ("scheduled", True)])
def test_answers_stay_what_they_are_while_caches_grow_and_shrink(
    preset: str, overlap: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline: Pipeline = request.getfixturevalue(preset)
    asked = [(large if n % 4 == 3 else small)(pipeline, n) for n in range(12)]
    alone = [pipeline.answer(one).result().token_ids for one in asked]
    sizes, room = Sizes(pipeline, monkeypatch), 2 * pipeline.spec.slot_bytes
    with Scheduler(pipeline, slots=8, kv_bytes=room, overlap=overlap) as scheduler:
        tickets = [scheduler.submit(one) for one in asked]
        assert [ticket.answer().token_ids for ticket in tickets] == alone
    assert all(row * rows <= room for row, rows, _ in sizes.seen)
    assert max(rows for _, rows, _ in sizes.seen[1:]) > 2  # than fit with full capacity
    moves = list(sizes.moves)
    assert any(before < after for before, after in moves)
    assert overlap or any(before > after for before, after in moves)


def test_a_large_request_waits_for_room_and_none_passes_it(
    mha: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[int] = []
    run = mha.session.run

    def spy(graph: str, feeds: Any, caches: Any = None) -> Any:
        if graph == PREFILL:
            prompts.append(feeds[INPUT_IDS].shape[1])
        return run(graph, feeds, caches)

    monkeypatch.setattr(mha.session, "run", spy)
    asked = [small(mha), small(mha, 1), large(mha), small(mha, 2)]
    with Scheduler(mha, slots=8, kv_bytes=2 * mha.spec.slot_bytes) as scheduler:
        tickets = [scheduler.submit(one) for one in asked]
        for ticket in tickets:
            ticket.answer()
    assert prompts == [one.tokens.input_ids.shape[1] for one in asked]


@pytest.mark.parametrize("why", ["late", "cancelled"])
def test_who_waits_for_room_may_leave(mha: Pipeline, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    scheduler = Scheduler(mha, slots=8, kv_bytes=2 * mha.spec.slot_bytes, overlap=False)
    gate = Gate(mha, monkeypatch, DECODE)
    first = [scheduler.submit(small(mha, number)) for number in (0, 1)]
    for _ in range(3):  # vision once, prefill twice, and steps between
        gate.wait()
        gate.go()
    gate.wait()
    wait_until(lambda: scheduler.stats.running == 2)
    waiting = scheduler.submit(large(mha), timeout=0.5 if why == "late" else None)
    behind = scheduler.submit(small(mha, 2))
    gate.go()
    gate.wait()  # two run, and for three there is no room while one is so large
    assert (scheduler._arriving, len(scheduler._running)) == (None, 2)
    if why == "cancelled":
        waiting.cancel()
    wait_until(lambda: waiting.over)
    gate.go(1000)
    if why == "late":
        with pytest.raises(DeadlineError):
            waiting.answer()
    else:
        assert waiting.answer().finish_reason == "cancelled"
    assert waiting.usage is None
    for number, ticket in enumerate([*first, behind]):
        assert ticket.answer().token_ids == mha.answer(small(mha, number)).result().token_ids
    scheduler.close()


def test_a_bundle_whose_longest_request_has_no_room_is_refused(mha: Pipeline) -> None:
    size = mha.spec.slot_bytes
    message = f"one sequence take up to {size} bytes, {size - 1} are allowed; allow more, or build"
    with pytest.raises(SettingsError, match=message):
        Scheduler(mha, slots=4, kv_bytes=size - 1)
    Scheduler(mha, slots=4, kv_bytes=size).close()


def test_sizes_are_chosen(mha: Pipeline) -> None:
    """For 1536 bytes a token in both groups, of which the first has 678 at most and the second 448."""
    little, much = (550, 60), (678, 448)
    slots = Slots(mha.session, kv_bytes=4 * mha.spec.slot_bytes, most=9)
    assert (slots.capacities, slots.count) == ((64, 64), 9)
    assert slots.wanted([little, (540, 100)]) == (576, 128)  # the longest in each group
    slots.resize((576, 128))
    assert slots.count == slots.fitting((576, 128)) == 4 * (678 + 448) // (576 + 128) == 6
    assert slots.wanted([little] * 6) == (576, 128)  # they will do
    assert slots.wanted([little] * 7) == (576, 64)  # one more fits into shorter rows
    assert slots.wanted([(600, 60)]) == (640, 64)
    assert slots.wanted([(100, 100)]) == (128, 128)  # much shorter ones would do
    assert slots.have_room([little] * 7)
    assert not slots.have_room([little] * 8)
    assert slots.have_room([little, little, little, much])
    assert not slots.have_room([little, little, little, little, much])


def test_caches_that_are_not_resizable_stay_as_they_are(
    mha: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of engines, and of old bundles."""
    monkeypatch.setattr(mha.session, "resizable", False)
    sizes = Sizes(mha, monkeypatch)
    with Scheduler(mha, slots=8, kv_bytes=3 * mha.spec.slot_bytes) as scheduler:
        scheduler.warm_up(small(mha))
        tickets = [scheduler.submit((large if n % 2 else small)(mha, n)) for n in range(6)]
        for ticket in tickets:
            ticket.answer()
    assert sizes.seen == [(mha.spec.slot_bytes, 3, 0)]
    assert (scheduler.stats.slots, scheduler.admission.limit) == (3, 3 + 64)


def test_a_failure_while_caches_grow_leaves_nothing_behind(
    mha: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the tensors are new when it happens, and NaNs are in them."""
    resize = mha.session.resize_caches

    def failing(caches: Any, batch: int, capacities: Any, *, rows: Sequence[int] = ()) -> None:
        resize(caches, batch, capacities, rows=rows)
        if rows:
            for name in [*caches.values][::2]:
                caches.values[name].numpy()[:] = np.nan
            for name in [*caches.values][1::2]:
                del caches.values[name]
            raise MemoryError("no room for an array")

    monkeypatch.setattr(mha.session, "resize_caches", failing)
    with Scheduler(mha, slots=8, kv_bytes=4 * mha.spec.slot_bytes, overlap=False) as scheduler:
        *running, arriving = [scheduler.submit(one) for one in (small(mha), small(mha, 1), large(mha))]
        for ticket in running:
            with pytest.raises(MemoryError):
                ticket.answer()
        after = arriving.answer()
    assert after.token_ids == mha.answer(large(mha)).result().token_ids
    assert scheduler.stats.finished == {"error": 2, "length": 1}


def test_nans_of_a_row_stay_behind_when_caches_grow(mha: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [small(mha), small(mha, 1), small(mha, 2), large(mha)]
    alone = [mha.answer(one).result().token_ids for one in asked]
    run, spoiled = mha.session.run, list[int]()

    def overflowing(graph: str, feeds: Any, caches: Any = None) -> Any:
        outputs = run(graph, feeds, caches)
        if graph == DECODE and len(scheduler._running) == 3 and not spoiled:
            outputs["logits"].value.numpy()[0] = np.nan
            for cache in caches.values.values():
                cache.numpy()[0] = np.nan
            spoiled.append(0)
        return outputs

    with Scheduler(mha, slots=8, kv_bytes=4 * mha.spec.slot_bytes, overlap=False) as scheduler:
        monkeypatch.setattr(mha.session, "run", overflowing)
        tickets = [scheduler.submit(one) for one in asked]
        with pytest.raises(NonFiniteError):
            tickets[0].answer()
        assert [ticket.answer().token_ids for ticket in tickets[1:]] == alone[1:]
    assert spoiled
