"""Conversations whose visual tokens stay: one answer, whether their KV caches were kept or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.Image import Image

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.request import Request
from star_export.contract import DECODE, INPUT_IDS, PREFILL, VISION
from star_export.serving.admission import Admission
from star_export.serving.prefixes import Prefix, PrefixCache
from star_export.serving.scheduler import Scheduler
from star_export.serving.ticket import Ticket
from star_export.validation.probes import make_probes

QUESTIONS = ("what color is it?", "where is the circle?", "how many shapes are there?")


@pytest.fixture(scope="module")
def mini(bundle: Callable[..., Path]) -> Pipeline:
    """A trained model, whose answers are words that it reads again as it wrote them."""
    return load(bundle("mini", max_images=3), threads=1)


@pytest.fixture(scope="module")
def shown() -> list[Image]:
    return [probe.pictures[0] for probe in make_probes(4)]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def conversation(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def talk(scheduler: Scheduler, pictures: list[Image], **options: Any) -> list[tuple[int, ...]]:
    """Tokens of the answer to each question, all before it being sent again."""
    said, answers = list[str](), list[tuple[int, ...]]()
    for question in QUESTIONS:
        said.append(question)
        request = scheduler.pipeline.request(pictures, conversation(*said), reprune=False, **options)
        answer = scheduler.submit(request).answer()
        answers.append(answer.token_ids)
        said.append(answer.text)
    return answers


class Ran:
    """Graphs that ran, each with its number of tokens."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, int]] = []
        run = pipeline.session.run

        def spy(graph: str, feeds: Any, caches: Any = None) -> Any:
            self.seen.append((graph, 1 if graph == VISION else feeds[INPUT_IDS].shape[1]))
            return run(graph, feeds, caches)

        monkeypatch.setattr(pipeline.session, "run", spy)

    def count(self, graph: str) -> int:
        return sum(name == graph for name, _ in self.seen)


@pytest.mark.parametrize("overlap", [True, False])
def test_the_answer_is_the_same_with_kept_caches_and_without(
    mini: Pipeline, shown: list[Image], monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    ran = Ran(mini, monkeypatch)
    with Scheduler(mini, slots=2, prefix_bytes=64 << 20, overlap=overlap) as scheduler:
        hits = talk(scheduler, shown[:1])
        stats = scheduler.snapshot()
    assert (stats.prefix_hits, stats.prefix_misses) == (2, 0)
    assert (ran.count(VISION), ran.count(PREFILL)) == (1, 1)
    with Scheduler(mini, slots=2, prefix_bytes=0, overlap=overlap) as scheduler:
        misses = talk(scheduler, shown[:1])
        stats = scheduler.snapshot()
    assert (stats.prefix_hits, stats.prefix_misses, stats.prefix_bytes) == (0, 2, 0)
    assert hits == misses
    chat = mini.chat(images=shown[:1])
    assert hits == [chat.send(question).result().token_ids for question in QUESTIONS]


def test_generate_gives_the_same(mini: Pipeline, shown: list[Image]) -> None:
    turns = conversation(QUESTIONS[0], "red", QUESTIONS[1])
    request = mini.request(shown[:1], turns, reprune=False)
    first = mini.request(shown[:1], turns[:1])
    assert np.array_equal(request.tokens.input_ids, first.tokens.input_ids)
    alone = mini.generate(shown[:1], turns, reprune=False).result()
    opening = mini.generate(shown[:1], turns[:1]).result()
    assert alone.stage2_indices == opening.stage2_indices
    assert alone.stage2_indices != mini.generate(shown[:1], turns).result().stage2_indices
    with Scheduler(mini, slots=1) as scheduler:
        answer = scheduler.submit(request).answer()
    assert answer.token_ids == alone.token_ids
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.stage2_tokens) == (alone.prompt_tokens, 64)


def test_the_last_picture_opens_what_is_kept(mini: Pipeline, shown: list[Image]) -> None:
    picture = {"type": "image"}
    turns: list[Any] = [
        {"role": "user", "content": [picture, {"type": "text", "text": QUESTIONS[0]}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [picture, {"type": "text", "text": QUESTIONS[1]}]},
    ]
    request = mini.request(shown[:2], turns, reprune=False)
    assert request.appended == ()
    longer = [*turns, *conversation("", "left")[1:], user(QUESTIONS[2])]
    again = mini.request(shown[:2], longer, reprune=False)
    assert np.array_equal(again.tokens.input_ids, request.tokens.input_ids)
    assert again.appended
    assert mini.request(shown[:2], longer).appended == ()


def test_only_what_agrees_is_gone_on_from(
    mini: Pipeline, shown: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another answer than the model's own, a longer one, another budget, another picture."""

    def ask(texts: tuple[str, ...], number: int = 0, **options: Any) -> Request:
        return mini.request(shown[number], conversation(*texts), reprune=False, max_new_tokens=4, **options)

    asked = [
        ask(QUESTIONS[:1]),
        ask((QUESTIONS[0], "red", QUESTIONS[1])),
        ask((QUESTIONS[0], "the circle is blue and it is large " * 3, QUESTIONS[1])),
        ask((QUESTIONS[0], "red", QUESTIONS[1], "left", QUESTIONS[2])),
        ask((QUESTIONS[0], "red", QUESTIONS[1]), keep=5),
        ask((QUESTIONS[0], "red", QUESTIONS[1]), 1),
    ]
    alone = [mini.answer(one).result().token_ids for one in asked]
    with Scheduler(mini, slots=2) as scheduler:
        found = [scheduler.submit(one).answer().token_ids for one in asked]
        stats = scheduler.snapshot()
        assert found == alone
        assert (stats.prefix_hits, stats.prefix_misses) == (3, 2)
        ran = Ran(mini, monkeypatch)
        assert scheduler.submit(asked[3]).answer().token_ids == alone[3]  # all but one token is held
    appended = [tokens for graph, tokens in ran.seen if graph == DECODE]
    assert appended[0] == 1
    assert ran.count(PREFILL) == 0


def done(pipeline: Pipeline, request: Request) -> Ticket:
    """A request as it is when its answer has ended."""
    ticket = Ticket(request, pipeline.transcript(request), place=Admission(1).enter(), timeout=None)
    ticket.lengths = np.array([540, 86])
    return ticket


def test_kept_caches_have_a_limit(mini: Pipeline, shown: list[Image]) -> None:
    """The least recently used go; and the beginning of what is kept is not kept twice."""
    request, caches = mini.request(shown[0], QUESTIONS[0], reprune=False), mini.session.allocate_caches()
    size = mini.spec.sequence_bytes((540, 86))
    kept = PrefixCache(2 * size + 2000, mini.session)
    others = [mini.request(picture, QUESTIONS[0], reprune=False) for picture in shown[1:3]]
    kept.keep(done(mini, request), (), caches)
    assert kept.bytes == size
    kept.keep(done(mini, request), (7,), caches)
    assert kept.bytes == size
    kept.keep(done(mini, others[0]), (7,), caches)
    again = mini.request(shown[0], conversation(QUESTIONS[0], "red", QUESTIONS[1]), reprune=False)
    assert kept.find(again) is not None
    kept.keep(done(mini, others[1]), (7,), caches)  # pushes out the one that was not asked for
    assert kept.bytes == 2 * size
    assert kept.find(again) is not None
    longer = mini.request(shown[1], conversation(QUESTIONS[0], "red", QUESTIONS[1]), reprune=False)
    assert kept.find(longer) is None


def test_shorter_caches_take_what_their_request_goes_on_from(mini: Pipeline) -> None:
    """What another answer appended may be longer than all that this request needs."""
    groups, random = len(mini.spec.groups), np.random.default_rng(0)
    shapes = {name: tensor.shape for name, tensor in mini.session.contract[DECODE].caches().items()}
    held = {
        name: random.random((1, heads, 100, size), np.float32) for name, (_, heads, _, size) in shapes.items()
    }
    prefix = Prefix(held, appended=(5,) * 50, lengths=np.full(groups, 100), kept=())
    caches = mini.session.allocate_caches(1, mini.session.capacities([60] * groups))
    assert prefix.fill(caches, appended=10).tolist() == [60] * groups
    for name, values in held.items():
        np.testing.assert_array_equal(caches.numpy(name)[:, :, :60], values[:, :, :60])
