"""Structured output: which tokens may come next, so that the answer is JSON of a schema.

llguidance compiles the schema and computes the masks; it needs neither torch nor transformers.
"""

import importlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from star_export.engines.session import Int64
from star_export.errors import InputError, PlatformError, option
from star_export.typed import parse

Schema = str | Mapping[str, Any]

MAX_SCHEMA_LENGTH = 1 << 16
#: Each number up to the least common multiple is a state that llguidance makes, without a limit of its own.
MAX_MULTIPLE = 100_000
#: Compiled schemas that a pipeline remembers.
_REMEMBERED = 32
#: Between the parts of JSON: a space, or a line end and spaces. Models write spaces for ever where they may.
_WHITESPACE = r" |\n {0,16}"


class Constraint:
    """What one answer may go on with; made by :meth:`Grammar.constraint`.

    Attributes:
        complete: Whether nothing may follow, so that the answer is done.
    """

    def __init__(self, matcher: Any, ends: Sequence[int], hidden: Sequence[int]) -> None:
        self._matcher, self._ends, self._hidden = matcher, list(ends), list(hidden)
        self.complete = False

    def allowed(self, vocabulary: int) -> Int64:
        """Ids of the tokens that may come next, ascending; end tokens exactly where the answer may end.

        Where the schema leaves one text only, it is the next token of that text as the tokenizer cuts it.

        Args:
            vocabulary: Only ids below it.
        """
        mask = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        mask[self._hidden] = 0
        mask[self._ends] = self._matcher.is_accepting()
        return np.flatnonzero(mask[:vocabulary].view(np.bool_))  # several times as quick as numbers

    def advance(self, token: int) -> bool:
        """Append a token that is allowed; whether it could be: a vocabulary may lack what must come."""
        if token in self._ends:
            return True
        taken: bool = self._matcher.consume_token(token)
        self.complete = taken and self._matcher.is_stopped() and self._matcher.is_accepting()
        return taken

    def refusal(self) -> InputError:
        """Why no token may come next."""
        reason = _line(self._matcher.get_error()) or "what it allows has no probability"
        return InputError(f"{option('schema')} cannot be followed any further: {reason}; simplify it")


@dataclass(frozen=True)
class Grammar:
    """A compiled schema, for one answer after the other.

    Attributes:
        matcher: llguidance's, at its beginning.
        ends: Tokens that end an answer.
        hidden: Tokens that llguidance takes for such.
    """

    matcher: Any
    ends: tuple[int, ...]
    hidden: tuple[int, ...]

    def constraint(self) -> Constraint:
        """A constraint at the beginning of an answer."""
        return Constraint(self.matcher.deep_copy(), self.ends, self.hidden)


class Grammars:
    """Compiles schemas for one tokenizer, whose tables are made with the first; any thread may.

    Args:
        tokenizer: The model's.
        vocabulary: Logits of the model, which may have more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._lock, self._made = threading.Lock(), None
        self._matcher = lru_cache(_REMEMBERED)(self._compiled)

    def grammar(self, schema: Schema, ends: Sequence[int]) -> Grammar:
        """A schema, compiled.

        Args:
            schema: A JSON schema, as JSON or as values of it.
            ends: Tokens that end an answer.

        Raises:
            InputError: If it is no JSON schema, too large, or has what llguidance does not know.
            PlatformError: If llguidance is not installed.
        """
        matcher, table = self._matcher(_checked(schema)), self._table
        known = tuple(end for end in ends if end < table.vocab_size)
        return Grammar(matcher, known, tuple(table.eos_tokens))

    def _compiled(self, text: str) -> Any:
        library, table = _library(), self._table
        limits = library.LLParserLimits(
            initial_lexer_fuel=200_000, step_lexer_fuel=50_000, max_lexer_states=20_000, verbose_errors=False
        )
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": _WHITESPACE}
            )
        except ValueError as error:
            raise _refused(str(error)) from error
        matcher = library.LLMatcher(table, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what fails at once, fails here
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return matcher

    @property
    def _table(self) -> Any:
        """llguidance's view of the tokenizer."""
        with self._lock:
            if self._made is None:
                library, size = _library(), 1 + max(self._tokenizer.get_vocab().values())
                size = max(size, self._vocabulary)
                try:
                    self._made = library.LLTokenizer(self._tokenizer.to_str(), n_vocab=size)
                except ValueError as error:
                    raise _refused(f"llguidance cannot read this model's tokenizer: {error}") from error
            return self._made


def read_schema(source: str) -> str:
    """JSON as it is, or the content of the file that has this name.

    Raises:
        InputError: If the file cannot be read.
    """
    if source.lstrip().startswith("{"):
        return source
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a NUL, no UTF-8
        raise InputError(
            f"cannot read {option('schema')} {source!r}: {getattr(error, 'strerror', None) or error}; "
            "give a JSON schema or the file of one"
        ) from error


def _checked(schema: Schema) -> str:
    """A schema as JSON; one that would take too long to compile is refused.

    Raises:
        InputError: If it is too large, or no JSON object.
    """
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
        if len(text) > MAX_SCHEMA_LENGTH:
            raise _refused(f"it has {len(text)} characters, at most {MAX_SCHEMA_LENGTH} are taken")
        values = parse(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused(f"it is not JSON: {str(error).removeprefix('it is not JSON: ')}") from error
    if not isinstance(values, dict):
        raise _refused(f"it must be a JSON object, got {text[:40]}")
    multiples = [Decimal(str(number)) for number in _multiples(values)]
    shift = max((-number.as_tuple().exponent for number in multiples), default=0)  # type: ignore[operator]
    if lcm(*(int(number.scaleb(max(shift, 0))) for number in multiples)) > MAX_MULTIPLE:
        raise _refused(f"the least common multiple of every multipleOf in it is above {MAX_MULTIPLE}")
    return json.dumps(values)  # what was looked at: a key may have been there twice


def _multiples(schema: Any) -> Iterator[int | float]:
    """Every ``multipleOf`` in it but 0; however deep, which llguidance judges."""
    left = [schema]
    while left:
        values = left.pop()
        if isinstance(values, dict):
            found = values.get("multipleOf")
            if type(found) in (int, float) and found:
                yield found
        left += values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise PlatformError(
            f"{option('schema')} needs llguidance ({error}); run: pip install 'star-export[schema]'"
        ) from error


def _refused(reason: str) -> InputError:
    return InputError(f"{option('schema')} cannot be used: {_line(reason)}")


def _line(reason: str) -> str:
    return " ".join(reason.removesuffix("<non-verbose/>").split())[:300]
