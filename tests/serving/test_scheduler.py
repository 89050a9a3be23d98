"""In-flight batching on a real bundle: the same answers, and nobody hurts a neighbour."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.request import Request
from star_export.answer.sampling import Sampling
from star_export.contract import DECODE, INPUT_IDS, POSITION_IDS, PREFILL, VISION
from star_export.errors import BusyError, DeadlineError, NonFiniteError
from star_export.serving import admission as admission_module
from star_export.serving import ticket as ticket_module
from star_export.serving.scheduler import Scheduler
from star_export.serving.ticket import Piece
from tests.serving.gate import Gate

PICTURE = Path(__file__).parents[2] / "docs/shapes.png"
LONG = 32  # the mha bundle's max_new_tokens


@pytest.fixture(scope="module")
def mini(bundle) -> Pipeline:
    return load(bundle("mini"), threads=1)


@pytest.fixture(scope="module")
def mha(bundle) -> Pipeline:
    """Random weights: answers are nonsense, and long."""
    return load(bundle("mha"), threads=1)


@pytest.fixture
def uneven(mha: Pipeline) -> Pipeline:
    """The same graphs under a spec that tells one early and five late layers, to tell them apart."""
    entering, inside = mha.spec.schedule
    early = dataclasses.replace(inside, after_layer=1)
    spec = dataclasses.replace(mha.spec, schedule=(entering, early))
    return Pipeline(dataclasses.replace(mha.bundle, spec=spec), mha.session)


@pytest.fixture
def scheduler(mini: Pipeline) -> Iterator[Scheduler]:
    with Scheduler(mini, slots=4) as scheduler:
        yield scheduler


def requests(pipeline: Pipeline) -> list[Request]:
    """Different pictures, prompts, budgets, lengths and samplings."""
    picture = Image.open(PICTURE).convert("RGB")
    pictures = [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), picture.rotate(90)]
    prompts = ["What color is the square?", "What number is written?", "How many rings are there?"]
    return [
        pipeline.request(
            pictures[i % 3],
            prompts[(i + i // 3) % 3],
            keep=(64, 58, 29, 1)[i % 4],
            max_new_tokens=(1, 5, 32)[i % 3],
            sampling=Sampling(temperature=0.7, top_p=0.9, seed=i) if i % 2 else None,
            stop=("e",) if i % 5 == 0 else (),
        )
        for i in range(18)
    ]


@pytest.mark.parametrize("preset", ["mini", "mha"])
def test_answers_are_those_of_one_at_a_time(preset: str, request: pytest.FixtureRequest) -> None:
    pipeline: Pipeline = request.getfixturevalue(preset)
    asked = requests(pipeline)
    with Scheduler(pipeline, slots=5) as scheduler:
        tickets = [scheduler.submit(one) for one in asked]
        answers = [ticket.answer() for ticket in tickets]
    for one, answer in zip(asked, answers, strict=True):
        alone = _alone(pipeline, one)
        assert (answer.text, answer.token_ids) == (alone.text, alone.token_ids)
        assert answer.finish_reason == alone.finish_reason
        assert answer.usage is not None
        assert answer.usage.stage2_tokens == len(alone.stage2_indices) == one.keep
        assert answer.usage.stage1_tokens == len(alone.stage1_indices)
        assert answer.usage.prompt_tokens == alone.prompt_tokens
    assert scheduler.stats.finished.total() == scheduler.stats.accepted == len(asked)
    assert scheduler.stats.tokens == sum(len(answer.token_ids) for answer in answers)


def test_pieces_make_the_text_and_the_tokens(scheduler: Scheduler) -> None:
    ticket = scheduler.submit(scheduler.pipeline.request(PICTURE, "What number is written?"))
    pieces = []
    while isinstance(update := ticket.next(), Piece):
        pieces.append(update)
    assert update is not None
    pieces.append(ticket.rest)
    assert "".join(piece.text for piece in pieces) == update.text
    assert sum((piece.token_ids for piece in pieces), ()) == update.token_ids
    assert ticket.next() is update


def test_at_most_one_piece_of_other_work_between_two_steps(
    mha: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []  # graphs, and how many sequences were running
    run = mha.session.run

    def spy(graph, feeds, caches=None):
        ran.append((graph, len(scheduler._running)))
        return run(graph, feeds, caches)

    with Scheduler(mha, slots=4) as scheduler:
        monkeypatch.setattr(mha.session, "run", spy)
        answers = [ticket.answer() for ticket in [scheduler.submit(one) for one in requests(mha)]]
    graphs = [graph for graph, _ in ran]
    assert graphs.count(VISION) == 3  # three pictures, seen once each
    assert graphs.count(PREFILL) == len(answers)
    assert graphs.count(DECODE) < sum(len(answer.token_ids) - 1 for answer in answers) / 2
    for before, (graph, running) in zip(graphs, ran[1:], strict=False):
        assert graph == DECODE or running == 0 or before == DECODE


def test_every_batch_size_has_run_before_the_first_request(
    mha: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    run = mha.session.run

    def spy(graph, feeds, caches=None):
        sizes.append(len(feeds[INPUT_IDS]))
        return run(graph, feeds, caches)

    monkeypatch.setattr(mha.session, "run", spy)
    Scheduler(mha, slots=5).close()
    assert sizes == [1, 2, 4, 5]


def test_a_full_queue_refuses_and_goes_on(mha: Pipeline) -> None:
    asked = mha.request(PICTURE, "What is this?", max_new_tokens=LONG)
    with Scheduler(mha, slots=1, queue=2) as scheduler:
        first = scheduler.submit(asked)
        first.next()  # it runs: the queue is empty
        waiting = [scheduler.submit(asked) for _ in range(2)]
        with pytest.raises(BusyError, match=r"^3 requests are here already; try again later$"):
            scheduler.submit(asked)
        texts = {ticket.answer().text for ticket in (first, *waiting)}
        assert len(texts) == 1
        assert (scheduler.admission.present, scheduler.admission.refused) == (0, 1)


def test_a_cancelled_request_frees_its_slot(mha: Pipeline) -> None:
    asked = mha.request(PICTURE, "What is this?", max_new_tokens=LONG)
    with Scheduler(mha, slots=1) as scheduler:
        running, waiting, last = (scheduler.submit(asked) for _ in range(3))
        running.next()
        waiting.cancel()
        running.cancel()
        part = running.answer()
        assert part.finish_reason == "cancelled"
        whole = last.answer()
        assert len(part.token_ids) < len(whole.token_ids) == LONG
        assert whole.token_ids[: len(part.token_ids)] == part.token_ids
        never = waiting.answer()
        assert (never.finish_reason, never.token_ids, never.usage) == ("cancelled", (), None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that tickets go by."""
    now = [1000.0]
    fake = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    for module in (admission_module, ticket_module):
        monkeypatch.setattr(module, "time", fake)
    return now


@pytest.mark.parametrize("graph", [VISION, PREFILL, DECODE])
@pytest.mark.parametrize("why", ["late", "cancelled"])
def test_requests_are_let_go_in_every_state(
    mha: Pipeline, monkeypatch: pytest.MonkeyPatch, clock: list[float], graph: str, why: str
) -> None:
    """While the picture is seen, while the prompt is read, while tokens come; and while one waits."""
    scheduler = Scheduler(mha, slots=1)
    gate, asked = Gate(mha, monkeypatch, graph), mha.request(PICTURE, "What is this?", max_new_tokens=LONG)
    ticket, waiting, patient = (scheduler.submit(asked, timeout=t) for t in (10.0, 10.0, 11.0))
    gate.wait()
    clock[0] += 10.0  # just in time
    if graph == DECODE:
        gate.go()
        gate.wait()
        assert isinstance(ticket.next(60), Piece)
    if why == "late":
        clock[0] += 0.5
    else:
        ticket.cancel()
        waiting.cancel()
    gate.go(1000)
    for one in (ticket, waiting):
        if why == "late":
            with pytest.raises(DeadlineError, match="took longer than 10 s"):
                one.answer()
        else:
            assert one.answer().finish_reason == "cancelled"
    # Whatever was running is the last: prefill with the step that follows it, or a step.
    assert len(ticket.transcript.token_ids) == {VISION: 0, PREFILL: 2, DECODE: 3}[graph]
    assert waiting.transcript.token_ids == []
    assert patient.answer().finish_reason == "length"
    scheduler.close()
    assert scheduler.stats.finished == {"error" if why == "late" else "cancelled": 2, "length": 1}
    assert (scheduler.stats.first_tokens, scheduler.stats.accepted) == (1 + (graph != VISION), 3)


def test_stats_tell_what_runs_and_what_waits(uneven: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, spec = Scheduler(uneven, slots=2, queue=2), uneven.spec
    gate = Gate(uneven, monkeypatch, DECODE)
    sent = [uneven.request(PICTURE, "Hm?" * (i + 1), keep=9 + i, max_new_tokens=LONG) for i in range(4)]
    tickets = [scheduler.submit(request) for request in sent[:3]]
    gate.wait()  # the first alone
    tickets.append(scheduler.submit(sent[3]))
    gate.go()  # vision of the second
    gate.wait()
    gate.go()  # prefill of the second
    gate.wait()  # both: two steps are counted
    assert scheduler.stats.running == 1  # as of the step before
    gate.go()
    gate.wait()
    stats = scheduler.stats
    assert (stats.running, stats.accepted) == (2, len(tickets))
    assert stats.waiting == len(tickets) - 2
    lengths = [request.tokens.input_ids.shape[1] for request in sent[:2]]
    early, late = sum(lengths) + 3 + 1, sum(lengths) - 2 * spec.image_tokens + 9 + 10 + 3 + 1
    assert stats.kv_bytes == spec.sequence_bytes((early, late))
    gate.go(1000)
    assert [ticket.answer().finish_reason for ticket in tickets] == ["length"] * len(tickets)
    scheduler.close()
    assert (stats.running, stats.waiting, stats.kv_bytes) == (0, 0, 0)
    assert stats.finished == {"length": len(tickets)}
    assert stats.tokens == LONG * len(tickets)
    timings = [ticket.answer().timings_ms for ticket in tickets]
    assert stats.queue_ms == pytest.approx(sum(t["queue"] for t in timings))
    assert stats.ttft_ms == pytest.approx(sum(t["ttft"] for t in timings))
    saved = [t.answer().usage.kv_bytes_unpruned - t.answer().usage.kv_bytes for t in tickets]
    assert stats.kv_bytes_saved == sum(saved)


def test_a_request_that_fails_hurts_no_neighbour(mini: Pipeline, scheduler: Scheduler) -> None:
    good = requests(mini)[:6]
    bad = with_pixels(good[0], np.zeros((1, 3, 5, 5), np.float32))
    tickets = [scheduler.submit(one) for one in (good[0], bad, *good[1:])]
    with pytest.raises(Exception, match="pixel_values"):
        tickets.pop(1).answer()
    for one, ticket in zip(good, tickets, strict=True):
        assert ticket.answer().token_ids == _alone(mini, one).token_ids


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7, seed=0)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nans_are_told_and_stay_with_their_request(mini: Pipeline, place: int, sampling: Sampling) -> None:
    """In whichever slot; the slot is clean for the next one, and neighbours never notice."""
    good = [dataclasses.replace(one, stop=(), max_new_tokens=9) for one in requests(mini)[:3]]
    bad = mini.request(PICTURE, "What number is written? " * 3, keep=288, sampling=sampling)
    bad = with_pixels(bad, np.full_like(bad.images[0].pixels, np.nan))
    with Scheduler(mini, slots=3) as scheduler:
        sent = [*good[:place], bad, *good[place:], *good]
        tickets = [scheduler.submit(one) for one in sent]
        with pytest.raises(NonFiniteError, match="not finite"):
            tickets.pop(place).answer()
        for one, ticket in zip(good + good, tickets, strict=True):
            assert ticket.answer().token_ids == _alone(mini, one).token_ids
        assert scheduler.stats.finished["error"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_row_of_a_batch(mha: Pipeline, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """A step whose logits overflow in one place of the row in the middle."""
    asked = [mha.request(PICTURE, "Hm?" * (i + 1), keep=9 + i, max_new_tokens=LONG) for i in range(3)]
    right = [_alone(mha, one).token_ids for one in asked]
    run, overflows = mha.session.run, []

    def overflowing(graph: str, feeds: Any, caches: Any = None) -> Any:
        outputs = run(graph, feeds, caches)
        if graph == DECODE and len(feeds[INPUT_IDS]) == 3 and feeds[POSITION_IDS].all() and not overflows:
            outputs["logits"].value.numpy()[1, 7] = value
            for cache in caches.values.values():
                cache.numpy()[1] = value
            overflows.append(value)
        return outputs

    with Scheduler(mha, slots=3) as scheduler:
        monkeypatch.setattr(mha.session, "run", overflowing)
        tickets = [scheduler.submit(one) for one in (*asked, asked[1])]  # the last waits for that slot
        with pytest.raises(NonFiniteError):
            tickets[1].answer()
        assert [tickets[i].answer().token_ids for i in (0, 3, 2)] == right
        assert tickets[3].slot == 1
    assert overflows


def test_after_any_failure_slots_are_cleaned(mha: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that fails in the middle of a step, or of a prefill, leaves anything behind."""
    asked = mha.request(PICTURE, "What is this?", max_new_tokens=4)
    right, run = _alone(mha, asked).token_ids, mha.session.run
    for failing in (PREFILL, DECODE):
        with Scheduler(mha, slots=1) as scheduler:

            def broken(graph: str, feeds: Any, caches: Any = None, failing: str = failing) -> Any:
                if graph != failing:
                    return run(graph, feeds, caches)
                for cache in caches.values.values():
                    cache.numpy()[0] = np.nan
                raise RuntimeError("an illegal memory access")

            monkeypatch.setattr(mha.session, "run", broken)
            with pytest.raises(RuntimeError, match="illegal"):
                scheduler.submit(asked).answer()
            monkeypatch.setattr(mha.session, "run", run)
            assert scheduler.submit(asked).answer().token_ids == right


def test_closing_finishes_what_was_accepted(mha: Pipeline) -> None:
    asked = mha.request(PICTURE, "What is this?", max_new_tokens=LONG)
    scheduler = Scheduler(mha, slots=1)
    tickets = [scheduler.submit(asked) for _ in range(3)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while not scheduler._closing:
        time.sleep(0.001)
    with pytest.raises(BusyError, match="shutting down"):
        scheduler.submit(asked)
    assert all(len(ticket.answer().token_ids) == LONG for ticket in tickets)
    closing.join(10)
    assert not closing.is_alive()


def with_pixels(request: Request, pixels: npt.NDArray[np.float32]) -> Request:
    return dataclasses.replace(request, images=(dataclasses.replace(request.images[0], pixels=pixels),))


def test_pictures_that_were_prepared_twice_are_seen_once(mini: Pipeline, scheduler: Scheduler) -> None:
    for prompt in ("What number is written?", "What color is it?"):
        scheduler.submit(mini.request(PICTURE, prompt, max_new_tokens=2)).answer()
    assert (scheduler.features.hits, scheduler.features.misses) == (1, 1)


def test_several_pictures_are_seen_one_between_two_steps(bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    with load(bundle("mha", max_images=2), threads=1) as pipeline:
        turned = Image.open(PICTURE).rotate(90)
        asked = [
            pipeline.request(PICTURE, "What is it?", max_new_tokens=12),
            pipeline.request([PICTURE, turned], "What is left of <image>, and what of <image>?"),
        ]
        alone = [_alone(pipeline, one) for one in asked]
        run = pipeline.session.run
        with Scheduler(pipeline, slots=2) as scheduler:
            monkeypatch.setattr(pipeline.session, "run", lambda g, *rest: (ran.append(g), run(g, *rest))[1])
            answers = [t.answer() for t in [scheduler.submit(one) for one in asked]]
        assert [answer.token_ids for answer in answers] == [one.token_ids for one in alone]
        assert scheduler.features.hits == 1  # the first picture of the second request is known
        assert ran[:5] == [VISION, PREFILL, DECODE, DECODE, VISION]
        usage = answers[1].usage
        assert (usage.patches, usage.stage1_tokens, usage.stage2_tokens) == (1152, 1036, 64)


def _alone(pipeline: Pipeline, request: Request):
    return pipeline.answer(request).result()
