"""Schemas and logprobs on a trained model: alone, in a batch, from a service, in a chat."""

import json
from pathlib import Path

import pytest

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.sampling import Sampling
from star_export.errors import InputError
from star_export.serving.options import ServiceOptions
from star_export.serving.query import Query
from star_export.serving.scheduler import Scheduler
from star_export.serving.service import Service
from star_export.serving.ticket import Answer, Piece

PICTURE = Path(__file__).parents[2] / "docs/shapes.png"


@pytest.fixture(scope="module")
def mini(bundle) -> Pipeline:
    return load(bundle("mini"), threads=1)


def test_schemas_and_logprobs_in_one_batch(mini: Pipeline) -> None:
    """With and without them, greedy and sampled: as alone."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    asked = [
        mini.request(
            PICTURE,
            "What number is written?",
            max_new_tokens=(6, 32)[i % 2],
            sampling=Sampling(temperature=0.9 * (i % 3), seed=i, top_logprobs=(None, 0, 3)[i % 3]),
            stop=("}",) if i == 6 else (),
            schema=(None, schema, {"enum": ["six", "seven"]})[(i + 1) % 3],
        )
        for i in range(9)
    ]
    found = []
    with Scheduler(mini, slots=4) as scheduler:
        for ticket in [scheduler.submit(one) for one in asked]:
            pieces = []
            while isinstance(update := ticket.next(), Piece):
                pieces.append(update)
            found.append((update, [*pieces, ticket.rest]))
    for one, (answer, pieces) in zip(asked, found, strict=True):
        alone = mini.answer(one).result()
        assert isinstance(answer, Answer)
        assert (answer.text, answer.token_ids) == (alone.text, alone.token_ids)
        assert answer.finish_reason == alone.finish_reason
        if one.sampling.top_logprobs is None:
            assert {answer.logprobs, alone.logprobs, *(piece.logprobs for piece in pieces)} == {None}
            continue
        told = [said for piece in pieces for said in piece.logprobs or ()]
        assert tuple(told) == answer.logprobs
        assert len(told) == len(answer.token_ids)
        assert [len(said.top_logprobs) for said in told] == [one.sampling.top_logprobs] * len(told)
        numbers = [said.logprob for said in alone.logprobs or ()]
        assert [said.logprob for said in told] == pytest.approx(numbers, abs=1e-3)


def test_stop_strings_and_limits_cut_json(mini: Pipeline) -> None:
    schema = {"enum": ["six or seven", "seven or six"]}
    whole = mini.generate(PICTURE, "What number is written?", schema=schema).result()
    assert json.loads(whole.text) in schema["enum"]
    assert whole.finish_reason == "stop"
    stopped = mini.generate(PICTURE, "What number is written?", schema=schema, stop=[" or"]).result()
    assert (stopped.text, stopped.finish_reason) == (whole.text.partition(" or")[0], "stop")
    cut = mini.generate(PICTURE, "What number is written?", schema=schema, max_new_tokens=3).result()
    assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:3], "length")
    assert whole.text.startswith(cut.text)


def test_a_service_takes_schemas_and_logprobs(mini: Pipeline) -> None:
    asked = {"image": PICTURE.read_bytes(), "prompt": "What number is written?", "top_logprobs": 1}
    with Service(mini, ServiceOptions(max_slots=2)) as service:
        for schema in ('{"enum": ["six"]}', {"enum": ["six"]}):
            answer = service.submit(Query.of(asked | {"schema": schema})).answer()
            assert (answer.text, answer.finish_reason) == ('"six"', "stop")
            assert [len(one.top_logprobs) for one in answer.logprobs or ()] == [1] * len(answer.token_ids)
        with pytest.raises(InputError, match="schema cannot be used"):
            service.submit(Query.of(asked | {"schema": "{"}))
        assert service.stats().present == 0


def test_a_schema_holds_for_one_turn_of_a_chat(mini: Pipeline) -> None:
    chat = mini.chat(images=[PICTURE])
    for schema in ({"enum": ["here", 7]}, '{"type": "boolean"}'):
        assert chat.send("Where?", schema=schema).result().text in ('"here"', "7", "true", "false")
    assert chat.send("What color is the square?").result().text.isalpha()
    with pytest.raises(InputError, match="schema cannot be used"):
        chat.send("Where?", schema="{")
    assert (chat.stats().turns, chat.stats().prefills) == (6, 1)
