"""In-flight batching on a real bundle: the same answers, and nobody hurts a neighbour."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star_export.contract import DECODE, INPUT_IDS, PREFILL, VISION
from star_export.engines.features import FeatureCache
from star_export.engines.scheduler import Scheduler, count_slots
from star_export.engines.ticket import Piece
from star_export.errors import BusyError, DeadlineError, SettingsError, StarExportError
from star_export.generation import Request
from star_export.pipeline import Pipeline, VisionOutput, load
from star_export.sampling import Sampling

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
        with pytest.raises(BusyError, match="1 requests are running and 2 are waiting; try again"):
            scheduler.submit(asked)
        texts = {ticket.answer().text for ticket in (first, *waiting)}
        assert len(texts) == 1
        assert scheduler.stats.refused == 1


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


def test_a_request_that_takes_too_long_ends(mha: Pipeline) -> None:
    asked = mha.request(PICTURE, "What is this?", max_new_tokens=LONG)
    with Scheduler(mha, slots=1) as scheduler:
        running = scheduler.submit(asked, timeout=1e-9)
        with pytest.raises(DeadlineError, match="took longer than 1e-09 s"):
            running.answer()
        blocking = scheduler.submit(asked)
        waiting = scheduler.submit(asked, timeout=0.001)
        with pytest.raises(DeadlineError):
            waiting.answer()
        assert blocking.answer().finish_reason == "length"


def test_a_request_that_fails_hurts_no_neighbour(mini: Pipeline, scheduler: Scheduler) -> None:
    good = requests(mini)[:6]
    bad = dataclasses.replace(good[0], pixels=np.zeros((1, 3, 5, 5), np.float32))
    tickets = [scheduler.submit(one) for one in (good[0], bad, *good[1:])]
    with pytest.raises(Exception, match="pixel_values"):
        tickets.pop(1).answer()
    for one, ticket in zip(good, tickets, strict=True):
        assert ticket.answer().token_ids == _alone(mini, one).token_ids


def test_nans_are_told_and_stay_with_their_request(mini: Pipeline) -> None:
    good = requests(mini)[2]
    bad = dataclasses.replace(good, pixels=np.full_like(good.pixels, np.nan))
    with Scheduler(mini, slots=1) as scheduler:
        with pytest.raises(StarExportError, match="not finite"):
            scheduler.submit(bad).answer()
        assert scheduler.submit(good).answer().token_ids == _alone(mini, good).token_ids


def test_nans_left_in_a_slot_would_reach_the_next_request(mini: Pipeline) -> None:
    """Why spoiled slots are cleaned."""
    good = requests(mini)[2]
    caches = mini.session.allocate_caches(2)
    slot = caches.rows(1, 2)
    for value in slot.values.values():
        value.numpy()[1] = np.nan
    _fill(mini, good, slot)
    assert np.isnan(_next_logits(mini, good, slot)).all()
    slot.zero()
    state = _fill(mini, good, slot)
    assert np.isfinite(_next_logits(mini, good, slot)).all()
    assert state.position == good.tokens.input_ids.shape[1]
    assert not caches.rows(0, 1).numpy("past_key_values.0.key").any()  # the neighbour's


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


def test_a_pruned_bundle_has_more_slots(bundle) -> None:
    pruned, full = (load(bundle("mha", prune=prune), threads=1) for prune in (True, False))
    budget = 8 * full.spec.slot_bytes
    assert count_slots(full, budget, most=99) == 8
    assert count_slots(pruned, budget, most=99) == budget // pruned.spec.slot_bytes > 8
    assert count_slots(pruned, budget, most=3) == 3
    with pytest.raises(SettingsError, match="allow more"):
        count_slots(pruned, pruned.spec.slot_bytes - 1, most=99)


def test_features_are_held_within_a_limit() -> None:
    seen = []

    def see(pixels):
        seen.append(pixels[0])
        return VisionOutput(np.zeros(25, np.float32), None, 1)  # 100 bytes

    cache = FeatureCache(limit=250)
    for value in (1, 2, 1, 3, 1, 2):  # 3 pushes out 2, which was used longest ago
        cache.get(np.array([value], np.float32), see)
    assert seen == [1, 2, 3, 2]
    assert (cache.hits, cache.misses, cache.bytes) == (2, 4, 200)


def _alone(pipeline: Pipeline, request: Request):
    from star_export.generation import Generation

    return Generation(pipeline, request).result()


def _fill(pipeline: Pipeline, request: Request, caches):
    vision = pipeline.encode_image(request.pixels)
    return pipeline.prefill(request.tokens, vision, keep=request.keep, caches=caches)


def _next_logits(pipeline: Pipeline, request: Request, caches):
    state = _fill(pipeline, request, caches)
    lengths = np.array([state.position]), np.array([state.late_length])
    return pipeline.decode_batch(caches, np.array([5]), *lengths).numpy()
