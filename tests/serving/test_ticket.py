"""A ticket: pieces once, the end as often as it is asked for, and nobody waits for what will not come."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from star_export.answer.request import Request
from star_export.answer.sampling import Sampling
from star_export.answer.transcript import Transcript
from star_export.errors import InputError
from star_export.preprocessing import PreparedImage, TokenizedPrompt
from star_export.preprocessing.images import Packing
from star_export.serving import admission as admission_module
from star_export.serving import ticket as module
from star_export.serving.admission import Admission
from star_export.serving.ticket import Answer, Piece, Stopwatch, Ticket, Usage
from star_export.specs import ExportSpec, ImageLimits, ModelSpec, Stage, TextSpec, VisionSpec

END = 0


@pytest.fixture(scope="module")
def ids() -> Callable[[str], list[int]]:
    return lambda text: tokenizer().encode(text).ids


def tokenizer() -> Tokenizer:
    """Every byte is a token; 0 ends an answer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({"</s>": END, **{letter: i + 1 for i, letter in enumerate(alphabet)}}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["</s>"])
    return found


def make(*, timeout: float | None = None, limit: int = 99, stop: tuple[str, ...] = ()) -> Ticket:
    """A ticket whose picture and prompt are empty."""
    empty = np.zeros((1, 0), np.int64)
    request = Request(
        images=(),
        tokens=TokenizedPrompt(empty, empty, empty),
        keep=1,
        max_new_tokens=limit,
        sampling=Sampling(),
        stop=stop,
    )
    transcript = Transcript(tokenizer(), eos_token_ids=(END,), max_new_tokens=limit, stop=stop)
    return Ticket(request, transcript, place=Admission(1).enter(), timeout=timeout)


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What ``work`` gives; fails where it takes longer."""
    done: list[Any] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits for ever"
    if failed:
        raise failed[0]
    return done[0]


def finished(ids: Callable[[str], list[int]], text: str = "abc") -> Ticket:
    ticket = make()
    for token in [*ids(text), END]:
        ticket.push(token)
    ticket.finish("stop")
    return ticket


def test_the_answer_is_there_as_often_as_it_is_asked_for(ids: Any) -> None:
    ticket = finished(ids)
    answer = within(5, ticket.answer)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("abc", (*ids("abc"), END), "stop")
    assert within(5, ticket.answer) is answer
    assert within(5, ticket.next) is answer
    assert within(5, lambda: list(ticket)) == []


def test_the_answer_after_the_iterator_handed_it_out(ids: Any) -> None:
    ticket = finished(ids)
    assert "".join(within(5, lambda: list(ticket))) == "abc"
    assert within(5, lambda: list(ticket)) == []
    assert within(5, ticket.answer).text == "abc"


def test_the_answer_after_next_handed_it_out(ids: Any) -> None:
    ticket = finished(ids)
    assert isinstance(within(5, ticket.next), Piece)
    assert isinstance(within(5, ticket.next), Answer)
    assert within(5, ticket.answer).text == "abc"


def test_a_failed_ticket_raises_the_same_error_again(ids: Any) -> None:
    ticket, error = make(), InputError("no")
    ticket.push(ids("a")[0])
    ticket.fail(error)
    pieces = iter(ticket)
    assert within(5, lambda: next(pieces)) == "a"  # what came before it is not lost
    assert ticket.rest == Piece("", ())
    for ask in (lambda: next(pieces), ticket.answer, ticket.answer, ticket.next, lambda: list(ticket)):
        with pytest.raises(InputError, match="no") as raised:
            within(5, ask)
        assert raised.value is error


def test_text_that_is_certain_only_at_the_end_comes_once(ids: Any) -> None:
    ticket = make(stop=("bc",))
    for token in ids("ab"):
        ticket.push(token)
    ticket.finish("length")
    assert within(5, lambda: list(ticket)) == ["a", "b"]
    assert within(5, lambda: list(ticket)) == []
    assert ticket.rest == Piece("b", tuple(ids("b")))
    assert within(5, ticket.answer).text == "ab"


def test_who_reads_slowly_gets_larger_pieces(ids: Any) -> None:
    ticket, tokens = make(), ids("aébc")
    for token in tokens[:3]:  # the second character is two tokens
        ticket.push(token)
    assert ticket.next() == Piece("aé", tuple(tokens[:3]))
    ticket.push(tokens[3])
    assert ticket.next() == Piece("b", (tokens[3],))
    ticket.push(tokens[4])
    ticket.push(END)
    ticket.finish("stop")
    assert ticket.next() == Piece("c", (tokens[4],))
    assert ticket.rest == Piece("", (END,))
    answer = ticket.next()
    assert isinstance(answer, Answer)
    assert answer.token_ids == (*tokens, END)


def test_next_waits_as_long_as_it_is_told_and_no_longer(ids: Any) -> None:
    ticket = make()
    assert ticket.next(0) is None
    start = time.monotonic()
    assert ticket.next(0.05) is None
    assert time.monotonic() - start >= 0.05
    ticket.push(ids("é")[0])  # half a character
    assert ticket.next(0) is None


def test_what_comes_wakes_everyone_who_waits(ids: Any) -> None:
    ticket = make()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(within, 30, ticket.answer) for _ in range(3)]
        piece = pool.submit(within, 30, lambda: next(iter(ticket), None))
        time.sleep(0.05)
        assert not any(one.done() for one in (*waiting, piece))
        for token in ids("xy"):
            ticket.push(token)
        ticket.finish("length")
        assert {one.result().text for one in waiting} == {"xy"}


def test_a_ticket_is_over_when_it_is_cancelled_or_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    for each in (admission_module, module):
        monkeypatch.setattr(each, "time", clock)
    ticket, patient, hasty = make(timeout=5.0), make(), make(timeout=0.0)
    now[0] = 105.0
    assert not ticket.over
    assert hasty.over
    now[0] = 105.1
    assert ticket.over
    now[0] = 1e9
    assert not patient.over
    patient.cancel()
    assert patient.over


@pytest.mark.parametrize("failed", [False, True])
def test_the_place_is_given_back_before_anyone_hears_of_the_end(
    ids: Any, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever has the answer finds a place for the next request."""
    ticket, admission, told = make(), Admission(1), []
    ticket.place, notify = admission.enter(), ticket._changed.notify_all

    def spy() -> None:
        told.append(admission.present)
        notify()

    monkeypatch.setattr(ticket._changed, "notify_all", spy)
    ticket.push(ids("a")[0])
    if failed:
        ticket.fail(InputError("no"))
    else:
        ticket.finish("stop")
    assert told == [1, 0]  # a piece, the end


def test_leaving_the_block_before_the_end_cancels(ids: Any) -> None:
    for done in (False, True):
        with finished(ids) if done else make() as ticket:
            pass
        assert ticket.cancelled is not done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the seconds that have gone by."""
    now = [50.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def set_to(seconds: float) -> None:
        now[0] = 50.0 + seconds

    return set_to


def test_progress_adds_up(clock: Callable[[float], None]) -> None:
    progress = Stopwatch()
    for seconds, stage in ((1.0, "queue"), (1.25, "vision"), (3.0, "prefill")):
        clock(seconds)
        progress.reach(stage)
        assert ("ttft" in progress.timings) == (stage == "prefill")
    clock(7.0)
    assert progress.done() == {
        "queue": 1000.0, "vision": 250.0, "prefill": 1750.0, "ttft": 3000.0, "total": 7000.0
    }  # fmt: skip


@pytest.mark.parametrize("pruned", [True, False])
def test_usage_counts_the_prompt_in_each_group_of_layers(pruned: bool) -> None:
    vision = VisionSpec(
        model_type="clip_vision_model", image_size=40, patch_size=4, hidden_size=8, intermediate_size=8,
        num_layers=2, num_heads=1, hidden_act="gelu", layer_norm_eps=1e-5,
        feature_layers=(2,), has_cls=True, feature_select="default",
    )  # fmt: skip
    text = TextSpec(
        hidden_size=8, intermediate_size=8, num_layers=7, num_heads=2, num_kv_heads=1, head_dim=4,
        vocab_size=9, hidden_act="silu", rms_norm_eps=1e-5, mlp_bias=False,
        q_bias=False, k_bias=False, v_bias=False, o_bias=False, tie_word_embeddings=False,
        max_position_embeddings=999, rope_parameters={}, sliding_window=None,
    )  # fmt: skip
    model = ModelSpec(
        model_type="llava", vision=vision, text=text, projector_act="gelu", projector_bias=True,
        image_token_id=1, eos_token_ids=(2,), tiling=None,
    )  # fmt: skip
    schedule = (
        Stage(after_layer=0, score="received", tokens=90, max_tokens=90),
        Stage(after_layer=2, score="text", tokens=30, max_tokens=40),
    )
    spec = ExportSpec(
        model=model,
        schedule=schedule if pruned else (),
        images=ImageLimits(max_images=1, max_tiles=1, max_image_tokens=100),
        max_text_tokens=20,
        max_new_tokens=9,
        append_tokens=1,
        dtype="float16",
    )
    visual, keep = (90, 33) if pruned else (100, 100)
    places = np.arange(visual)[None]
    tokens = TokenizedPrompt(np.zeros((1, visual + 11), np.int64), places, places[:, :3])
    picture = PreparedImage(pixels=np.zeros((1, 3, 40, 40), np.float32), packing=Packing(tokens=100))
    request = replace(make().request, images=(picture,), tokens=tokens, keep=keep)
    token = 2 * 4 * 2  # key and value of 4 float16 numbers
    full = token * 7 * 111
    lengths = spec.lengths(11, visual, keep)
    assert Usage.of(spec, request, lengths) == Usage(
        prompt_tokens=visual + 11,
        patches=100,
        stage1_tokens=visual,
        stage2_tokens=keep,
        kv_bytes=token * (2 * 101 + 5 * 44) if pruned else full,
        kv_bytes_unpruned=full,
    )


def test_an_answer_is_plain_json_values(ids: Any) -> None:
    data = finished(ids).answer().to_dict()
    assert (data["text"], data["finish_reason"], data["usage"]) == ("abc", "stop", None)
    assert list(data["timings_ms"]) == ["total"]


def test_who_watches_is_told_of_all_there_is_to_see(ids: Callable[[str], list[int]]) -> None:
    """Once at first, since there may be something already; then never too late, and without waiting."""
    ticket, seen = make(), list[Any]()
    ticket.push(*ids("a"))
    ticket.watch(lambda: seen.append(ticket.next(0)))
    ticket.push(*ids("b"))
    ticket.finish("length")
    assert [update.text for update in seen[:2]] == ["a", "b"]
    assert isinstance(seen[-1], Answer)
    failing = make()
    failing.watch(lambda: seen.append("told"))
    failing.fail(InputError("no"))
    assert seen[-2:] == ["told", "told"]
