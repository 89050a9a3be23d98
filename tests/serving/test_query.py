"""Plain values of a request: their names, their types, and pictures in every form they come in."""

import base64
from pathlib import Path
from typing import Any

import pytest

from star_export.answer.sampling import Sampling
from star_export.errors import InputError
from star_export.serving.query import Query, image_bytes

PICTURE = (Path(__file__).parents[2] / "docs/shapes.png").read_bytes()
ASKED: dict[str, Any] = {"image": PICTURE, "prompt": "What is this?"}
TEXT = base64.b64encode(PICTURE)
#: Its base64 has both letters that the alphabets differ in.
BYTES = bytes([0xFB, 0xEF, 0xBE, 0xFF, 0xFF])


@pytest.mark.parametrize(
    "sent",
    [
        PICTURE,
        TEXT,
        TEXT.rstrip(b"="),
        b"\r\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)) + b"\n",
        base64.urlsafe_b64encode(PICTURE).rstrip(b"="),
        b"data:image/png;base64," + TEXT,
        b"data:image/png;charset=x;base64, " + TEXT.rstrip(b"="),
    ],
)
def test_pictures_come_as_bytes_or_in_any_base64(sent: bytes) -> None:
    assert image_bytes(sent) == PICTURE


def test_both_alphabets_and_every_padding() -> None:
    assert b"+" in base64.b64encode(BYTES)
    assert b"/" in base64.b64encode(BYTES)
    for size in range(1, 6):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for sent in (encode(BYTES[:size]), encode(BYTES[:size]).rstrip(b"=")):
                assert image_bytes(sent) == BYTES[:size]


@pytest.mark.parametrize("head", [b"P1\n", b"P2 ", b"P3\n"])
def test_pictures_that_are_text_stay_as_they_are(head: bytes) -> None:
    assert image_bytes(head + b"1 1\n255\n1 2 3\n") == head + b"1 1\n255\n1 2 3\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"====",
        b"https://example.com/dog.png",
        b"/tmp/dog.png.",
        b"AAAAA",  # no base64 has 4n + 1 letters
        b"AAA=AAAA",
        b"data:image/png," + TEXT,
        b"data:image/png;base64",
        b"data:;base64,",
    ],
)
def test_text_that_is_no_picture(sent: bytes) -> None:
    with pytest.raises(InputError, match="image must be an encoded picture, base64 or a data URL"):
        image_bytes(sent)


def test_the_message_shows_how_the_text_begins() -> None:
    with pytest.raises(InputError, match=r"got text: 'https://example\.com/'$"):
        image_bytes(b"https://example.com/dog.png")


def test_a_query_has_the_values_that_were_given() -> None:
    given = ASKED | {"keep": 3, "temperature": 1, "stop": ["a", "b"], "timeout_s": 2.5, "seed": 0}
    assert Query.of(given) == Query(
        image=PICTURE, prompt="What is this?", keep=3, temperature=1.0, stop=("a", "b"), timeout_s=2.5, seed=0
    )
    for schema in ('{"enum": [1, null]}', {"enum": [1, None]}):
        query = Query.of(ASKED | {"schema": schema, "top_logprobs": 3})
        assert (query.schema, query.top_logprobs) == (schema, 3)
    query, greedy = Query.of(ASKED), Sampling()
    assert query == Query(image=PICTURE, prompt="What is this?")
    assert (query.temperature, query.top_p, query.seed) == (greedy.temperature, greedy.top_p, greedy.seed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": "3"}, r"keep: expected int \| array \| null, got str, found '3'"),
        ({"keep": True}, "keep: expected int"),
        ({"keep": 3.5}, "keep: expected int"),
        ({"temperature": "hot"}, "temperature: expected float, got str, found 'hot'"),
        ({"top_p": None}, "top_p: expected float, got null"),
        ({"seed": "x"}, "seed: expected int"),
        ({"prompt": 7}, r"prompt: expected str \| array, got int, found 7"),
        ({"image": 7}, r"image: expected bytes \| array, got int, found 7"),
        ({"stop": "end"}, "stop: expected array, got str, found 'end'"),
        ({"schema": ["x"]}, r"schema: expected str \| object \| null, got array"),
        ({"top_logprobs": True}, "top_logprobs: expected int"),
        ({"stop": ["a", 1]}, r"stop\[1\]: expected str|stop\[...\]: expected str"),
        ({"timeout_s": []}, "timeout_s: expected float"),
        ({"max_tokens": 3}, r"^unknown field max_tokens; did you mean max_new_tokens\?$"),
        ({"n": 3}, r"^unknown field n; there are image, prompt, keep, "),
    ],
)
def test_values_of_other_types_and_unknown_names_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Query.of(ASKED | values)


def test_several_pictures_and_turns() -> None:
    turns = [{"role": "user", "content": "What is this?"}]
    query = Query.of({"image": [PICTURE, TEXT], "prompt": turns})
    assert (query.images, query.prompt) == ((PICTURE, TEXT), tuple(turns))
    assert Query.of(ASKED).images == (PICTURE,)


@pytest.mark.parametrize("name", ["image", "prompt"])
def test_what_every_request_needs(name: str) -> None:
    given = {key: value for key, value in ASKED.items() if key != name}
    with pytest.raises(InputError, match=f"^{name} is missing; every request needs it$"):
        Query.of(given)
