"""What several modules of C++ tests start with."""

from collections.abc import Iterator

import pytest

from tests.cpp.talker import Talker
from tests.cpp.texts import tokenizer_files


@pytest.fixture(scope="module")
def talker() -> Iterator[Talker]:
    """The C++ program that reads tokenizers and prompts."""
    with Talker("talk_text") as talker:
        yield talker


@pytest.fixture(scope="session")
def files() -> dict[str, str]:
    """A `tokenizer.json` of every kind."""
    return tokenizer_files()
