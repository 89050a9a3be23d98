"""What the models make of a request's fields."""

import dataclasses
import json

import numpy as np
import pytest

from star_export.errors import InputError
from star_export.serving.query import Query
from star_export.serving.triton.fields import INPUTS, check_names, scalars


def test_inputs_become_python_values() -> None:
    given = {
        "prompt": np.array([b"caf\xc3\xa9"], object),
        "stop": np.array([b"a", b"b"], object),
        "keep": np.array([29], np.int32),
        "stream": np.array([True]),
        "image": np.array([b"\xff"], object),
    }
    found = scalars(given)
    assert found == {"image": (b"\xff",), "prompt": "café", "keep": 29, "stop": ("a", "b"), "stream": True}
    assert type(found["keep"]) is int
    assert scalars({**given, "stop": np.array([b"a"], object)})["stop"] == ("a",)
    assert scalars({**given, "keep": np.array([128, 14], np.int32)})["keep"] == (128, 14)
    with pytest.raises(InputError, match="stop must be UTF-8"):
        scalars({**given, "stop": np.array([b"a", b"\xff"], object)})


def test_inputs_are_what_a_query_takes() -> None:
    """And how the answer is sent, which is the front door's own; the prompt may come as messages."""
    own = {"stream", "show", "messages"}
    assert {f.name for f in INPUTS} == {f.name for f in dataclasses.fields(Query)} | own
    required = {f.name for f in dataclasses.fields(Query) if f.default is dataclasses.MISSING}
    assert {f.name for f in INPUTS if not f.optional} == required - {"prompt"}


def test_messages_become_the_prompt() -> None:
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Wo?"}]}]
    given = {"messages": np.array([json.dumps(turns).encode()], object)}
    assert scalars(given) == {"prompt": tuple(turns)}
    with pytest.raises(InputError, match="prompt and messages are both given; give one of them"):
        scalars({**given, "prompt": np.array([b"Wo?"], object)})
    for text, fault in ((b"[", "messages must be JSON: "), (b"{}", "messages must be a JSON list of ")):
        with pytest.raises(InputError, match=fault):
            scalars({"messages": np.array([text], object)})


def test_unknown_fields_are_named() -> None:
    check_names(["keep", "stop", "id", "binary_data_output", "triton_enable_empty_final_response"])
    with pytest.raises(InputError, match=r"^unknown field max_tokens; did you mean max_new_tokens\?$"):
        check_names(["keep", "max_tokens"])
    with pytest.raises(InputError, match=r"^unknown field n; there are image, prompt, messages, keep, "):
        check_names(["n"])
