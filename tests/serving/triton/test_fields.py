"""What the models make of a request's fields."""

import base64
from pathlib import Path

import numpy as np
import pytest

from star_export.errors import InputError
from star_export.serving.triton.fields import check_names, image_bytes, scalars

PICTURE = (Path(__file__).parents[3] / "docs/shapes.png").read_bytes()
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


def test_inputs_become_python_values() -> None:
    given = {
        "prompt": np.array([b"caf\xc3\xa9"], object),
        "stop": np.array([b"a", b"b"], object),
        "keep": np.array([29], np.int32),
        "stream": np.array([True]),
        "image": np.array([b"\xff"], object),
    }
    found = scalars(given)
    assert found == {"image": b"\xff", "prompt": "café", "keep": 29, "stop": ("a", "b"), "stream": True}
    assert type(found["keep"]) is int
    assert scalars({**given, "stop": np.array([b"a"], object)})["stop"] == ("a",)
    with pytest.raises(InputError, match="stop must be UTF-8"):
        scalars({**given, "stop": np.array([b"a", b"\xff"], object)})


@pytest.mark.parametrize("name", ["image", "prompt"])
def test_what_every_request_needs(name: str) -> None:
    given = {"image": np.array([b"x"], object), "prompt": np.array([b"x"], object)}
    del given[name]
    with pytest.raises(InputError, match=f"{name} is missing"):
        scalars(given)


def test_unknown_fields_are_named() -> None:
    check_names(["keep", "stop", "id", "binary_data_output", "triton_enable_empty_final_response"])
    with pytest.raises(InputError, match=r"^unknown field max_tokens; did you mean max_new_tokens\?$"):
        check_names(["keep", "max_tokens"])
    with pytest.raises(InputError, match=r"^unknown field n; there are image, prompt, keep, "):
        check_names(["n"])
