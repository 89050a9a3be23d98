"""Answers over HTTP, asked for by OpenAI's own client and by curl."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from star_export.answer.pipeline import Pipeline
from star_export.answer.sampling import Sampling
from star_export.cli.commands import app
from star_export.serving.service import Service

from .conftest import COLOR, MODEL, PLACE, asked, data_url, picture, text

ROOT = Path(__file__).parents[3]


def ask(client: openai.OpenAI, messages: list[dict[str, Any]], **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **options)  # type: ignore[call-overload]


def test_an_answer_is_that_of_run(
    client: openai.OpenAI, folder: Path, shapes: list[Path], reference: Pipeline
) -> None:
    ran = CliRunner().invoke(app, ["run", str(folder), "--image", str(shapes[0]), "--prompt", COLOR])
    right = reference.generate(shapes[0], COLOR).result()
    answer = ask(client, asked(shapes[0]))
    choice, usage = answer.choices[0], answer.usage
    assert choice.message.content == right.text
    assert right.text in ran.output
    assert (choice.message.role, choice.finish_reason) == ("assistant", right.finish_reason)
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", MODEL, "chatcmpl-")
    assert (usage.prompt_tokens, usage.completion_tokens) == (right.prompt_tokens, len(right.token_ids))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    stages = [len(right.stage1_indices), len(right.stage2_indices)]
    assert usage.prompt_tokens_details.star == {"patches": 576, "stages": stages}


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, shapes: list[Path]) -> None:
    whole = ask(client, asked(shapes[0]), temperature=100.0, seed=1, max_tokens=12)
    options = {"temperature": 100.0, "seed": 1, "max_tokens": 12, "stream": True}
    chunks = list(ask(client, asked(shapes[0]), **options, stream_options={"include_usage": True}))
    *deltas, end, last = chunks
    assert deltas[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in deltas]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 1
    assert [chunk.choices[0].finish_reason for chunk in [*deltas, end]] == [None] * len(deltas) + ["length"]
    assert (last.choices, last.usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in [*deltas, end])
    assert len({(chunk.id, chunk.object, chunk.model) for chunk in chunks}) == 1
    assert all("usage" not in chunk.to_dict() for chunk in ask(client, asked(shapes[0]), **options))


def test_pictures_and_turns_keep_their_places(
    client: openai.OpenAI, shapes: list[Path], reference: Pipeline
) -> None:
    first, second = shapes
    said = [
        {"role": "user", "content": [picture(first), text(COLOR)]},
        {"role": "assistant", "content": "red", "refusal": None, "tool_calls": None},
        {"role": "user", "content": [text(PLACE), picture(second)]},
    ]
    image = {"type": "image"}
    conversation = [
        {"role": "user", "content": [image, text(COLOR)]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [text(PLACE), image]},
    ]
    right = reference.generate([first, second], conversation, max_new_tokens=8).result()
    answer = ask(client, said, max_completion_tokens=8)
    assert answer.choices[0].message.content == right.text
    assert answer.usage.prompt_tokens == right.prompt_tokens
    assert answer.usage.prompt_tokens_details.star["patches"] == 2 * 576
    opened = ask(client, [{"role": "developer", "content": "Be brief."}, *said], max_completion_tokens=8)
    conversation.insert(0, {"role": "system", "content": "Be brief."})
    expected = reference.generate([first, second], conversation, max_new_tokens=8).result()
    assert opened.usage.prompt_tokens == expected.prompt_tokens > right.prompt_tokens
    assert opened.choices[0].message.content == expected.text


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"keep": 29}, {"keep": 29}),
        ({"keep": [200, 7]}, {"keep": (200, 7)}),
        (
            {"temperature": 4.0, "top_p": 0.9, "seed": 5, "max_tokens": 9},
            {"sampling": Sampling(temperature=4.0, top_p=0.9, seed=5), "max_new_tokens": 9},
        ),
    ],
)
def test_options_mean_what_they_mean_in_python(
    client: openai.OpenAI, shapes: list[Path], reference: Pipeline, options: Any, same: Any
) -> None:
    right = reference.generate(shapes[0], COLOR, **same).result()
    answer = ask(client, asked(shapes[0]), extra_body=options)
    assert answer.choices[0].message.content == right.text
    stages = [len(right.stage1_indices), len(right.stage2_indices)]
    assert answer.usage.prompt_tokens_details.star["stages"] == stages


@pytest.mark.parametrize("detail", [None, "low", "high", "auto"])
def test_pictures_are_taken_as_clients_send_them(
    client: openai.OpenAI, shapes: list[Path], reference: Pipeline, detail: str | None
) -> None:
    url = data_url(shapes[0])
    part = {"type": "image_url", "image_url": {"url": url, "detail": detail} if detail else url}
    said = [{"role": "user", "content": [text(PLACE), part]}]
    conversation = [{"role": "user", "content": [{"type": "text", "text": PLACE}, {"type": "image"}]}]
    right = reference.generate(shapes[0], conversation).result().text
    assert ask(client, said, temperature=None, max_tokens=None).choices[0].message.content == right


def test_a_conversation_goes_on_from_what_was_kept_of_it(client: openai.OpenAI, shapes: list[Path]) -> None:
    """Its first time it is read whole; both times, the first question has chosen the visual tokens."""
    said = [*asked(shapes[1]), {"role": "assistant", "content": "red"}, {"role": "user", "content": PLACE}]
    body = {"reprune": False, "show": True}
    miss, hit = (ask(client, said, extra_body=body) for _ in range(2))
    opening = ask(client, said[:1], extra_body={"show": True})
    assert hit.star["stages"] == miss.star["stages"] == opening.star["stages"]
    assert hit.choices == miss.choices
    assert miss.usage.prompt_tokens_details.cached_tokens == 0
    assert hit.usage.prompt_tokens_details.cached_tokens == hit.usage.prompt_tokens - 1
    assert hit.usage.prompt_tokens == miss.usage.prompt_tokens > opening.usage.prompt_tokens
    anew = ask(client, said, extra_body={"show": True})
    assert anew.usage.prompt_tokens_details.cached_tokens == 0
    assert anew.star["stages"] != hit.star["stages"]


def test_a_stop_string_ends_the_answer(client: openai.OpenAI, shapes: list[Path]) -> None:
    options = {"temperature": 100.0, "seed": 1, "max_tokens": 12}
    whole = ask(client, asked(shapes[0]), **options).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    for given in (stop, ["never said", stop]):
        choice = ask(client, asked(shapes[0]), **options, stop=given).choices[0]
        assert choice.message.content == whole[: whole.index(stop)]
        assert choice.finish_reason == "stop"


def test_values_that_ask_for_nothing_are_taken(client: openai.OpenAI, shapes: list[Path]) -> None:
    nothing = {
        "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "tools": [],
        "response_format": {"type": "text"}, "logprobs": False, "user": "someone", "store": False,
        "top_logprobs": None, "modalities": ["text"], "service_tier": "auto", "tool_choice": "none",
        "stream_options": {}, "max_completion_tokens": 1,
    }  # fmt: skip
    assert ask(client, asked(shapes[0]), max_tokens=1, extra_body=nothing).usage.completion_tokens == 1


def test_messages_are_taken_as_clients_write_them(
    client: openai.OpenAI, shapes: list[Path], reference: Pipeline
) -> None:
    """Several instructions are one; names, nulls and empty lists say nothing; an answer may be empty."""
    (question,) = asked(shapes[0])
    said = [
        {
            "role": "system",
            "content": [text("Be brief."), text(" Be kind.") | {"cache_control": {"type": "ephemeral"}}],
            "name": "office",
        },
        {"role": "developer", "content": "Be right."},
        {**question, "name": "me", "content": [part | {"annotations": None} for part in question["content"]]},
        {"role": "assistant", "content": None, "tool_calls": [], "function_call": None, "annotations": []},
        {"role": "user", "content": PLACE, "name": "me"},
    ]
    conversation = [
        {"role": "system", "content": "Be brief. Be kind.\n\nBe right."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": COLOR}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": PLACE},
    ]
    right = reference.generate(shapes[0], conversation).result()
    answer = ask(client, said)
    assert answer.choices[0].message.content == right.text
    assert answer.usage.prompt_tokens == right.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_who_asks_is_shown_what_was_kept(
    client: openai.OpenAI, shapes: list[Path], reference: Pipeline, stream: bool
) -> None:
    right = reference.generate(shapes, COLOR, keep=16, max_new_tokens=1).result()
    content = [*map(picture, shapes), text(COLOR)]
    options: dict[str, Any] = {"max_tokens": 1, "extra_body": {"show": True, "keep": 16}}
    if stream:
        *_, last = ask(client, [{"role": "user", "content": content}], stream=True, **options)
    else:
        last = ask(client, [{"role": "user", "content": content}], **options)
    first, second = last.star["stages"]
    assert tuple(first["kept"]) == right.stage1_indices
    assert second["kept"] == [right.stage1_indices[index] for index in right.stage2_indices]
    assert [(stage["name"], stage["score"]) for stage in (first, second)] == [
        ("stage 1", "received"),
        ("stage 2", "text"),
    ]
    views = last.star["views"]
    assert [view["image"] for view in views] == [0, 1]
    assert [number for view in views for row in view["tokens"] for number in row] == list(range(2 * 576))
    assert all((len(v["tokens"]), len(v["tokens"][0])) == (v["rows"], v["columns"]) for v in views)
    assert all(view["data"].startswith("data:image/png;base64,iVBOR") for view in views)
    assert 0 < last.star["kv_bytes"] < last.star["kv_bytes_unpruned"]
    assert last.star["timings_ms"]["ttft"] > 0


def test_curl_streams_events(where: str, shapes: list[Path]) -> None:
    body = json.dumps({"messages": asked(shapes[0]), "stream": True, "max_tokens": 2})
    command = [
        "curl",
        "-sSi",
        f"{where}/v1/chat/completions/",
        "-H",
        "Content-Type: application/json",
        "-d",
        "@-",
    ]
    out = subprocess.run(command, input=body, capture_output=True, text=True, timeout=60, check=True).stdout
    head, _, events = out.partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream" in head
    *chunks, done = events.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    assert all(json.loads(chunk.removeprefix("data: "))["model"] == MODEL for chunk in chunks)


@pytest.mark.parametrize("language", ["sh", "python"])
def test_what_the_documentation_shows_works(
    where: str, shapes: list[Path], reference: Pipeline, tmp_path: Path, language: str
) -> None:
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)
    code = blocks[0].replace("localhost:8000", where.removeprefix("http://")).replace("llava-7b", MODEL)
    if language == "sh":  # without its first two commands, which install and start
        code = code[code.index("printf") :]
    (tmp_path / "dog.png").write_bytes(shapes[0].read_bytes())
    command = ["bash", "-c"] if language == "sh" else [sys.executable, "-c"]
    out = subprocess.run(
        [*command, code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    keep = 29 if language == "python" else None
    right = reference.generate(shapes[0], "What is this?", keep=keep).result().text
    if language == "sh":
        events = [line.removeprefix("data: ") for line in out.stdout.split("\n\n")[:-2]]
        assert (
            "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events) == right
        )
    else:
        assert out.stdout == right


def test_models_are_listed_with_what_may_be_asked_of_them(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL) == model
    assert client.models.retrieve(f"{MODEL}/") == model
    assert client.get("/models/", cast_to=object) == client.get("/models", cast_to=object)
    star = model.model_extra["star"] if model.model_extra else {}
    assert (star["max_images"], star["max_new_tokens"]) == (3, 32)
    assert [(stage["score"], stage["keep"]) for stage in star["stages"]] == [("received", 518), ("text", 64)]


def test_metrics_are_those_of_the_service(
    client: openai.OpenAI, where: str, shapes: list[Path], service: Service
) -> None:
    before = service.stats()
    for _ in range(2):
        ask(client, asked(shapes[1]), max_tokens=2)
    with urllib.request.urlopen(f"{where}/metrics") as response:
        lines = dict(line.rsplit(" ", 1) for line in response.read().decode().splitlines() if line[0] != "#")
    stats, label = service.stats(), f'model="{MODEL}"'
    assert float(lines[f"star_tokens_total{{{label}}}"]) == stats.tokens == before.tokens + 4
    assert stats.feature_hits > before.feature_hits
    assert float(lines[f"star_feature_cache_hits_total{{{label}}}"]) == stats.feature_hits
    assert lines[f'star_requests_finished_total{{{label},outcome="length"}}'] == str(stats.finished["length"])
    assert float(lines[f"star_ttft_ms_count{{{label}}}"]) == stats.first_tokens
    assert lines[f'star_ttft_ms_bucket{{{label},le="+Inf"}}'] == str(stats.first_tokens)
    assert float(lines[f"star_between_tokens_ms_count{{{label}}}"]) == stats.tokens - stats.first_tokens


def test_the_page_is_there_and_may_load_nothing_else(where: str) -> None:
    with urllib.request.urlopen(f"{where}/") as response:
        assert response.headers["Content-Type"].startswith("text/html")
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert response.headers["Cache-Control"] == "no-store"
        assert b"<title>star-export" in response.read()
