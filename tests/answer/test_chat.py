"""Conversations in caches that stay: what is appended, when all is read anew, and what a failure leaves."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.Image import Image

from star_export.answer.chat import Chat
from star_export.answer.generation import Result
from star_export.answer.pipeline import Pipeline, load
from star_export.build import BuildOptions, build
from star_export.contract import DECODE, INPUT_IDS, VISION
from star_export.engines import Runtime, open_session
from star_export.errors import InputError, NonFiniteError, SettingsError
from star_export.validation.probes import make_probes

QUESTIONS = ("what color is it?", "where is the circle?", "how many shapes are there?")
LONG = "where is the circle? " * 30


@pytest.fixture(scope="module")
def star(bundle: Callable[..., Path]) -> Pipeline:
    """A trained model, whose answers are words that it reads again as it wrote them."""
    return load(bundle("mini", max_images=3), threads=1)


@pytest.fixture(scope="module")
def full(bundle: Callable[..., Path]) -> Pipeline:
    return load(bundle("mini", prune=False, max_images=3), threads=1)


@pytest.fixture(scope="module")
def shown() -> list[Image]:
    return [probe.pictures[0] for probe in make_probes(4)]


def said(chat: Chat, question: str, **options: Any) -> Result:
    return chat.send(question, **options).result()


def whole(pipeline: Pipeline, chat: Chat, question: str, **options: Any) -> Result:
    """The answer to the whole conversation, read from its start."""
    asked = [*chat.messages, {"role": "user", "content": question}]
    return pipeline.generate(list(chat.images), asked, **options).result()


def same(first: Result, second: Result) -> bool:
    """Equal in everything but the time they took."""
    return replace(first, timings_ms=second.timings_ms) == second


def watched(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, act: Callable[[str, Any], object]) -> None:
    """Call ``act(graph, feeds and outputs)`` after each run of a graph."""
    run = pipeline.session.run

    def watching(graph: str, feeds: Any, caches: Any = None) -> Any:
        outputs = run(graph, feeds, caches)
        act(graph, feeds | outputs)
        return outputs

    monkeypatch.setattr(pipeline.session, "run", watching)


def test_appended_turns_equal_one_prefill_of_all(full: Pipeline, shown: list[Image]) -> None:
    chat = full.chat(images=shown[:2])
    said(chat, QUESTIONS[0])
    for question in QUESTIONS:
        expected = whole(full, chat, question)
        assert same(said(chat, question), expected)
    assert chat.stats().prefills == 1
    assert len({message["content"][0]["text"] for message in chat.messages[1::2]}) > 1  # not one word for all


def test_caches_grow_with_the_conversation(
    full: Pipeline, shown: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, sizes = (*QUESTIONS, "Hm " * 16, *QUESTIONS), list[int]()
    with monkeypatch.context() as patch:
        patch.setattr(full.session, "resizable", False)
        roomy = full.chat(images=shown[:1])
        expected = [said(roomy, question).token_ids for question in questions]
    chat = full.chat(images=shown[:1])
    for question, answer in zip(questions, expected, strict=True):
        assert said(chat, question).token_ids == answer
        assert chat._caches is not None
        sizes.append(chat._caches.numpy("past_key_values.0.key").shape[2])
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] < full.spec.capacities[0]
    assert chat.stats().prefills == 1


def test_text_turns_leave_what_was_kept(star: Pipeline, shown: list[Image]) -> None:
    chat = star.chat(images=shown[:1])
    kept = {(answer.stage1_indices, answer.stage2_indices) for answer in (said(chat, q) for q in QUESTIONS)}
    assert len(kept) == 1
    early, late = chat.stats().lengths
    assert early - late == 518 - 64
    assert chat.stats().prefills == 1


def replayed(pipeline: Pipeline, chat_images: list[Image], texts: tuple[str, ...], limit: int) -> list[int]:
    """Greedy tokens of the last answer, tokens of all turns appended to its caches one by one."""
    images = pipeline.prepare(chat_images)
    turns: list[Any] = [{"role": "user", "content": [*[{"type": "image"}] * len(images), part(texts[0])]}]
    tokens = pipeline.tokenize(turns, images)
    state = pipeline.steps.prefill(tokens, *pipeline.steps.encode_images(images))
    for answer, question in zip(texts[1::2], texts[2::2], strict=True):
        held = pipeline.tokenize(turns, images).text_tokens
        turns += [
            {"role": "assistant", "content": [part(answer)]},
            {"role": "user", "content": [part(question)]},
        ]
        for token in pipeline.tokenize(turns, images).input_ids[0][len(tokens.image_positions[0]) + held :]:
            pipeline.steps.decode(state, int(token))
    found = [state.best_token()]
    while len(found) < limit and found[-1] not in pipeline.end_token_ids:
        pipeline.steps.decode(state, found[-1])
        found.append(state.best_token())
    return found


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def texts_of(chat: Chat) -> tuple[str, ...]:
    return tuple(message["content"][-1]["text"] for message in chat.messages)


@pytest.mark.parametrize("append_tokens", [1, 3, 64])
def test_pruned_turns_equal_tokens_that_are_appended_one_by_one(
    star: Pipeline, shown: list[Image], append_tokens: int
) -> None:
    changed = replace(star.bundle, spec=replace(star.spec, append_tokens=append_tokens))
    pipeline = Pipeline(changed, open_session(changed, Runtime(threads=1)))
    chat = pipeline.chat(images=shown[:1])
    for question in QUESTIONS:
        answer = said(chat, question)
    assert list(answer.token_ids) == replayed(star, shown[:1], texts_of(chat)[:-1], 32)
    assert chat.stats().prefills == 1


def test_a_new_picture_reads_all_anew(star: Pipeline, shown: list[Image]) -> None:
    chat = star.chat()
    with pytest.raises(InputError, match="no picture is given"):
        chat.send(QUESTIONS[0])
    said(chat, QUESTIONS[0], images=shown[:1])
    chat.attach(shown[1])
    answer = said(chat, "and here?")
    parts = [{"type": "image"}, part("and here?")]
    asked = [*chat.messages[:2], {"role": "user", "content": parts}]
    assert same(answer, star.generate(shown[:2], asked).result())
    assert (chat.stats().images, chat.stats().prefills) == (2, 2)
    said(chat, "so?")
    assert chat.stats().prefills == 2


def test_reprune_decides_anew_and_sees_once(
    star: Pipeline, shown: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = star.chat(images=shown[:1], reprune=True)
    expected = []
    for question in QUESTIONS:
        if chat.messages:
            expected.append(whole(star, chat, question))
        else:
            expected.append(star.generate(shown[:1], question).result())
        assert same(said(chat, question), expected[-1])
    assert len({answer.stage2_indices for answer in expected}) == len(QUESTIONS)
    seen: list[str] = []
    watched(star, monkeypatch, lambda graph, _: seen.append(graph))
    said(chat, "and?")
    assert VISION not in seen


def test_another_budget_prunes_anew(star: Pipeline, shown: list[Image]) -> None:
    chat = star.chat(images=shown[:1])
    said(chat, QUESTIONS[0])
    with pytest.raises(SettingsError, match="keep=289 is over this bundle's maximum of 288"):
        chat.keep = 289
    assert chat.keep is None
    chat.keep = 5
    expected = whole(star, chat, QUESTIONS[1], keep=5)
    assert same(said(chat, QUESTIONS[1]), expected)
    said(chat, QUESTIONS[2])
    assert chat.stats().prefills == 2
    early, late = chat.stats().lengths
    assert early - late == 518 - 5


def test_a_conversation_that_outgrows_the_bundle(star: Pipeline, shown: list[Image]) -> None:
    chat, other = (star.chat(images=shown[:1], keep=288) for _ in range(2))  # no room to spare in late layers
    for each in (chat, other):
        said(each, QUESTIONS[0])
    before = chat.messages
    with pytest.raises(
        InputError, match=r"the conversation has \d+ text tokens, .* room for 128; .* max_text_tokens=\d+"
    ):
        chat.send(LONG)
    with pytest.raises(InputError, match="at most 3 pictures, got 4; build it again with max_images=4"):
        chat.send("which?", images=shown[1:])
    for prompt in (" ", "half \ud800", "what is <image>?"):
        with pytest.raises(InputError):
            chat.send(prompt)
    assert chat.messages == before
    assert same(said(chat, QUESTIONS[1]), said(other, QUESTIONS[1]))
    assert chat.stats().prefills == 1
    while (room := 128 + 32 + 288 - chat.stats().lengths[1]) >= 32 + 20:  # a question has 12 tokens or so
        said(chat, QUESTIONS[2])
    with pytest.raises(InputError, match="max_text_tokens"):
        chat.send("where? " * room)


def test_a_picture_over_the_limit_is_not_attached(star: Pipeline, shown: list[Image]) -> None:
    chat = star.chat(images=shown[:3])
    with pytest.raises(InputError, match="max_images=4"):
        chat.attach(shown[3])
    assert len(said(chat, QUESTIONS[0]).stage1_indices) == 3 * 518


def test_one_picture_needs_no_list(star: Pipeline, shown: list[Image]) -> None:
    chat = star.chat(images=shown[0], max_new_tokens=2)
    chat.send(QUESTIONS[0], images=shown[1])
    assert same(said(chat, QUESTIONS[0]), said(star.chat(images=shown[:1], max_new_tokens=2), QUESTIONS[0]))


@pytest.mark.parametrize("how", ["close", "next question", "Ctrl-C"])
def test_an_answer_that_is_stopped_stays_as_far_as_it_came(
    star: Pipeline, shown: list[Image], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    question = QUESTIONS[1]
    tokens = star.generate(shown[:1], question).result().token_ids
    assert len(tokens) > 2  # two words and the end
    chat = star.chat(images=shown[:1])
    generation = chat.send(question)
    with monkeypatch.context() as patch:
        if how == "Ctrl-C":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
            watched(
                star, patch, lambda graph, _: signal.raise_signal(signal.SIGINT) if graph == DECODE else None
            )
            with pytest.raises(KeyboardInterrupt):
                list(generation)
        else:
            next(iter(generation))
        if how == "close":
            generation.close()
    answer = said(chat, QUESTIONS[0])
    assert texts_of(chat)[1] == star.tokenizer.decode(list(tokens[:1]))
    assert list(answer.token_ids) == replayed(star, shown[:1], texts_of(chat)[:-1], 32)
    assert chat.stats().prefills == 1
    with pytest.raises(InputError, match="closed before its end"):
        generation.result()


def test_a_question_that_nobody_asked_is_not_in_the_conversation(star: Pipeline, shown: list[Image]) -> None:
    chat = star.chat(images=shown[:1])
    chat.send("never iterated")
    assert chat.messages == []
    assert said(chat, QUESTIONS[0]).token_ids == star.generate(shown[:1], QUESTIONS[0]).result().token_ids


def test_logits_that_are_not_finite(
    star: Pipeline, shown: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = star.chat(images=shown[:1])
    said(chat, QUESTIONS[0])
    before, expected = chat.messages, whole(star, chat, QUESTIONS[1])

    def spoil(graph: str, outputs: Any) -> None:
        if graph == DECODE:
            outputs["logits"].value.numpy()[0, 7] = np.nan  # on the CPU, the memory itself

    with monkeypatch.context() as patch:
        watched(star, patch, spoil)
        with pytest.raises(NonFiniteError):
            said(chat, QUESTIONS[1])
    assert chat.messages == before
    assert same(said(chat, QUESTIONS[1]), expected)
    assert chat.stats().prefills == 2


TURNS = "{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
END = "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
PARTS = "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "prefills", "ends"),
    [
        (TURNS + PARTS + END + "{% endfor %}assistant:", 1, 2),  # the end that the model gave, once
        (TURNS + PARTS + "\n{% endfor %}assistant:", 1, 0),
        (TURNS + PARTS + "\n{% endfor %}ASSISTANT:", 1, 0),  # the header as it was answered to
        ("{{ messages | length }}" + TURNS + PARTS + "\n{% endfor %}assistant:", 3, 0),
        (TURNS + PARTS.replace("p.text", "p.text | upper") + "\n{% endfor %}assistant:", 3, 0),
    ],
)
def test_what_a_template_allows(
    full: Pipeline,
    shown: list[Image],
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    prefills: int,
    ends: int,
) -> None:
    generation = "{% if add_generation_prompt %}"
    head, _, prompt = template.rpartition("{% endfor %}")
    template = f"{head}{{% endfor %}}{generation}{prompt}{{% endif %}}"
    monkeypatch.setattr(full, "prompt_spec", replace(full.prompt_spec, chat_template=template))
    chat, decoded = full.chat(images=shown[:1], max_new_tokens=4), list[int]()
    watched(full, monkeypatch, lambda graph, io: decoded.extend(io[INPUT_IDS][0] if graph == DECODE else ()))
    for question in QUESTIONS:
        said(chat, question)
    assert chat.stats().prefills == prefills
    assert decoded.count(full.end_token_ids[0]) == ends


def test_saved_and_taken_up_again(star: Pipeline, shown: list[Image]) -> None:
    chat = star.chat(images=shown[:1])
    said(chat, QUESTIONS[0])
    again = star.chat(json.loads(json.dumps(chat.messages)), images=chat.images)
    assert again.messages == chat.messages
    assert same(said(again, QUESTIONS[1]), whole(star, chat, QUESTIONS[1]))
    with pytest.raises(InputError, match="has 1 places of pictures, expected 2, one for each picture"):
        star.chat(chat.messages, images=shown[:2])
    with pytest.raises(InputError, match=r"turn 2 .* is the user's, expected the assistant's"):
        star.chat(chat.messages[:1], images=shown[:1])


def test_others_may_use_the_pipeline_in_between(star: Pipeline, shown: list[Image]) -> None:
    chat, alone = (star.chat(images=shown[:1]) for _ in range(2))
    for question in QUESTIONS:
        generation = chat.send(question)
        next(iter(generation), None)
        star.generate(shown[1], LONG[:60], keep=288).result()
        assert same(generation.result(), said(alone, question))


def test_statistics(star: Pipeline, shown: list[Image]) -> None:
    chat = star.chat(images=shown[:2])
    empty = chat.stats()
    assert (empty.turns, empty.lengths, empty.bytes, empty.unpruned_bytes) == (0, (0, 0), 0, 0)
    answer = said(chat, QUESTIONS[0])
    stats = chat.stats()
    early = answer.prompt_tokens + len(answer.token_ids) - 1  # the end token is not fed
    assert stats.lengths == (early, early - 2 * 518 + 64)
    assert (stats.turns, stats.images, stats.image_tokens) == (2, 2, 2 * 576)
    layers = star.spec.model.text.num_layers
    assert stats.unpruned_bytes == star.spec.kv_bytes(early + 2 * 58, layers)
    assert stats.bytes == star.spec.sequence_bytes(stats.lengths) < stats.unpruned_bytes
    assert json.loads(json.dumps(stats.to_dict()))["timings_ms"]["prefill"] == answer.timings_ms.prefill


def test_settings_are_checked_at_once(star: Pipeline) -> None:
    with pytest.raises(SettingsError, match="max_new_tokens must be from 1 to 32, got 33"):
        star.chat(max_new_tokens=33)
    with pytest.raises(SettingsError, match="keep must be at least 1"):
        star.chat(keep=0)
    with pytest.raises(SettingsError, match="is no token of this model"):
        star.chat(end_tokens=["<|eot_id|>"])


@pytest.fixture(scope="module")
def onevision(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    options = BuildOptions(
        model=str(checkpoint("onevision")),
        output=tmp_path_factory.mktemp("onevision") / "bundle",
        keep=10,
        max_images=3,
        max_text_tokens=200,
        max_new_tokens=8,
    )
    return load(build(options).folder, threads=1)


def test_a_second_picture_changes_how_the_first_is_cut(onevision: Pipeline, shown: list[Image]) -> None:
    """OneVision cuts a picture only when it is alone; its template has another head for past answers."""
    chat = onevision.chat(images=shown[:1])
    alone = said(chat, QUESTIONS[0])
    said(chat, QUESTIONS[1])
    assert chat.stats().prefills == 1
    answer = said(chat, "and here?", images=shown[1:2])
    asked = [*chat.messages[:-2], {"role": "user", "content": [{"type": "image"}, part("and here?")]}]
    assert same(answer, onevision.generate(shown[:2], asked).result())
    assert len(answer.stage1_indices) < len(alone.stage1_indices)
    assert chat.stats().image_tokens == 2 * (25 + 1)
    said(chat, QUESTIONS[2])
    assert chat.stats().prefills == 2
