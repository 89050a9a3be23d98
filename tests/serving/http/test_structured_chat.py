"""JSON of a schema, and logprobs, as OpenAI's own client asks for them and reads them."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from star_export.answer.pipeline import Pipeline
from star_export.answer.sampling import Sampling

from .conftest import COLOR, MODEL, asked


class Found(BaseModel):
    """What a program wants to know of a picture."""

    color: Literal["red", "green", "blue"]


def ask(client: openai.OpenAI, shapes: list[Path], **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=asked(shapes[0]), **options)  # type: ignore[call-overload]


def test_a_model_of_pydantic_is_asked_for_and_parsed(client: openai.OpenAI, shapes: list[Path]) -> None:
    given: Any = {"model": MODEL, "messages": asked(shapes[0]), "response_format": Found}
    message = client.chat.completions.parse(**given).choices[0].message
    assert message.parsed == Found.model_validate_json(message.content or "")
    with client.chat.completions.stream(**given) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == message.parsed
    turns = [*given["messages"], message, {"role": "user", "content": "And now?"}]
    assert client.chat.completions.parse(**given | {"messages": turns}).choices[0].message.parsed


def test_every_answer_follows_its_schema(client: openai.OpenAI, shapes: list[Path]) -> None:
    """A hundred, greedy and sampled, half of them streamed, two at once."""
    schemas: list[dict[str, Any]] = [
        Found.model_json_schema() | {"additionalProperties": False},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        {"anyOf": [{"enum": ["left", "right"]}, {"type": "integer", "minimum": 10, "maximum": 99}]},
    ]

    def answer(number: int) -> str:
        schema = schemas[number % 3]
        form = {"type": "json_schema", "json_schema": {"name": "found", "schema": schema, "strict": True}}
        options = {"response_format": form, "temperature": (number % 4) / 3, "seed": number}
        if number % 2:
            return str(ask(client, shapes, **options).choices[0].message.content)
        chunks = ask(client, shapes, **options, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(answer, range(100)))
    for number, found in enumerate(answers):
        jsonschema.validate(json.loads(found), schemas[number % 3])
    assert len(set(answers)) > 10


def test_some_json_object_may_be_asked_for(client: openai.OpenAI, shapes: list[Path]) -> None:
    choice = ask(client, shapes, response_format={"type": "json_object"}).choices[0]
    assert choice.message.content.lstrip()[0] == "{"
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("count", [0, 3])
def test_logprobs_are_those_of_python(
    client: openai.OpenAI, shapes: list[Path], reference: Pipeline, count: int
) -> None:
    sampling = Sampling(temperature=2.0, seed=4, top_logprobs=count)
    right = reference.generate(shapes[0], COLOR, sampling=sampling, max_new_tokens=12).result()
    options = {"temperature": 2.0, "seed": 4, "max_tokens": 12, "logprobs": True, "top_logprobs": count}
    answer = ask(client, shapes, **options)
    told = answer.choices[0].logprobs.content
    assert len(told) == answer.usage.completion_tokens == len(right.token_ids)
    assert [one.token for one in told] == [one.token for one in right.logprobs or ()]
    assert [one.logprob for one in told] == pytest.approx(
        [one.logprob for one in right.logprobs or ()], abs=1e-3
    )
    assert [[top.token for top in one.top_logprobs] for one in told] == [
        [top.token for top in one.top_logprobs] for one in right.logprobs or ()
    ]
    choices = [chunk.choices[0] for chunk in ask(client, shapes, **options, stream=True)]
    assert [one for choice in choices if choice.logprobs for one in choice.logprobs.content] == told
    assert all(choice.logprobs for choice in choices if choice.delta.content)
    assert ask(client, shapes, max_tokens=1).choices[0].logprobs is None
