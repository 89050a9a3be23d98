"""Answers that are JSON of a schema, whatever the model would rather say."""

import itertools
import json
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from star_export.answer.choosing import next_tokens, no_token
from star_export.answer.grammar import MAX_SCHEMA_LENGTH, Grammar, Grammars, read_schema
from star_export.answer.logprobs import token_bytes
from star_export.answer.sampling import Sampler, Sampling
from star_export.answer.transcript import Transcript
from star_export.errors import InputError
from star_export.testing.tokenizers import TOKENIZERS

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": -5, "maximum": 1999},
        "tags": {"type": "array", "items": {"enum": ["a", "é", None, True]}, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "when": {"type": "string", "format": "date"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
PADDING = 70  # logits of no token


class Case:
    """A tokenizer as a model has it, and the tokens that end its answers."""

    def __init__(self, tokenizer: Tokenizer, *ends: str) -> None:
        self.tokenizer, self.vocabulary = tokenizer, tokenizer.get_vocab_size() + PADDING
        self.ends = [tokenizer.token_to_id(end) for end in ends]
        self.grammars = Grammars(tokenizer, self.vocabulary)
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        ids = range(self.vocabulary)
        self.spelled = [b"" if i in special else token_bytes(tokenizer, i) for i in ids]

    def grammar(self, schema: Any) -> Grammar:
        return self.grammars.grammar(schema, self.ends)

    def answer(self, schema: Any, sampling: Sampling, logits: Callable[[], Any]) -> Transcript:
        """An answer of a model that gives these logits; no longer than 1000 tokens."""
        sampler = Sampler(sampling, self.grammar(schema).constraint())
        transcript = Transcript(self.tokenizer, eos_token_ids=self.ends, max_new_tokens=1000)
        while not transcript.finish_reason:
            token = sampler.choose(logits())
            assert token is not None, sampler.refusal
            transcript.push(token, last=sampler.complete)
        transcript.finish()
        return transcript

    def random(self, seed: int) -> Callable[[], Any]:
        numbers = np.random.default_rng(seed)
        return lambda: numbers.normal(size=self.vocabulary).astype(np.float32)


ENDS = {
    "bytes": ["</s>"],
    "llama2": ["</s>"],
    "qwen2": ["<|im_end|>", "<|endoftext|>"],
    "llama3": ["<|eot_id|>"],
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(TOKENIZERS[request.param]().backend_tokenizer, *ENDS[request.param])


def test_random_answers_are_json_of_the_schema(case: Case) -> None:
    judge, texts = jsonschema.Draft202012Validator(SCHEMA), set()
    for seed in range(150):  # of four tokenizers: 600
        sampling = Sampling(temperature=1.0, top_p=0.9 if seed % 2 else 1.0, seed=seed)
        transcript = case.answer(SCHEMA, sampling, case.random(seed))
        assert transcript.finish_reason == "stop"
        judge.validate(json.loads(transcript.text))
        texts.add(transcript.text)
    assert len(texts) > 140
    assert transcript.text == case.answer(SCHEMA, sampling, case.random(seed)).text


INTEGERS = ["-0", *map(str, range(-3, 132))]
WORDS = [f'"{"".join(word)}"' for n in (1, 2, 3) for word in itertools.product("er dü", repeat=n)]


@pytest.mark.parametrize(
    ("schema", "answers"),
    [
        ({"type": "integer", "minimum": -3, "maximum": 131}, INTEGERS),
        ({"type": "string", "pattern": "^[er dü]{1,3}$"}, WORDS),
    ],
)
def test_the_best_token_is_the_best_of_those_that_a_search_allows(
    case: Case, schema: Any, answers: list[str]
) -> None:
    """Every token is tried against the list of all answers."""
    whole, said = {answer.encode() for answer in answers}, set()
    begun = {answer[:end] for answer in whole for end in range(len(answer) + 1)}
    for seed in range(20):
        logits, text = case.random(seed), b""
        sampler = Sampler(Sampling(), case.grammar(schema).constraint())
        while not sampler.complete:
            allowed = [i for i, new in enumerate(case.spelled) if new and text + new in begun]
            if text in whole:
                allowed += case.ends
            row = logits()
            best = allowed[row[allowed].argmax()]
            assert sampler.choose(row) == best
            if best in case.ends:
                break
            text += case.spelled[best]
        assert text in whole
        said.add(text)
    assert len(said) > 5


def test_what_every_token_may_follow_is_chosen_as_without_a_schema(case: Case) -> None:
    """Inside a string, as far as its tokens need no escape and go on with nothing else."""
    constraint = case.grammar({"type": "string"}).constraint()
    quote = case.spelled.index(b'"')
    constraint.advance(quote)
    free = constraint.allowed(case.vocabulary)
    logits = np.full(case.vocabulary, -np.inf, np.float32)
    logits[free] = np.random.default_rng(0).normal(size=free.size)
    for sampling in (Sampling(), *(Sampling(temperature=1.0, top_p=0.8, seed=seed) for seed in range(20))):
        constraint = case.grammar({"type": "string"}).constraint()
        constraint.advance(quote)
        assert Sampler(sampling, constraint).choose(logits) == Sampler(sampling).choose(logits)


def test_rows_with_and_without_a_schema_share_a_batch(case: Case) -> None:
    class Rows:
        def numpy(self) -> Any:
            return rows

        def argmax(self) -> Any:
            return np.where(np.isfinite(rows.max(1)), rows.argmax(1), -1)

    rows = np.stack([case.random(seed)() for seed in range(4)])
    rows[3] = np.nan
    grammar = case.grammar({"const": "x"})
    samplers = {row: Sampler(Sampling(), grammar.constraint() if row else None) for row in (0, 1, 2, 3)}
    found = next_tokens(Rows(), samplers)  # type: ignore[arg-type]
    assert found[0] == rows[0].argmax()
    assert [case.spelled[found[row] or 0][:1] for row in (1, 2)] == [b'"', b'"']
    assert found[3] is None
    assert "not finite" in str(no_token(samplers[3]))


def test_an_answer_that_no_token_goes_on_with_fails_alone() -> None:
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate("</s>" + string.digits)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["</s>"])
    case = Case(tokenizer, "</s>")
    sampler = Sampler(Sampling(), case.grammar({"type": "integer"}).constraint())
    never = np.full(case.vocabulary, -np.inf, np.float32)
    never[tokenizer.token_to_id("<")] = 0.0
    assert sampler.choose(never) is None
    assert "schema cannot be followed any further" in str(no_token(sampler))
    sampler = Sampler(Sampling(), case.grammar({"type": "string"}).constraint())
    assert sampler.choose(case.random(0)()) is None  # it has no quotation mark
    assert not sampler.complete
    assert "schema cannot be followed any further" in str(no_token(sampler))


@pytest.fixture(scope="module")
def plain() -> Case:
    return Case(TOKENIZERS["bytes"]().backend_tokenizer, "</s>")


def nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("{", "it is not JSON"),
        ("[]", r"it must be a JSON object, got \[\]"),
        ("true", "it must be a JSON object, got true"),
        ({"type": "strng"}, "Invalid type: strng"),
        ({"not": {"type": "string"}}, 'Unimplemented keys: ."not".'),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "Unsatisfiable schema"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "http://localhost:1/x.json"}, "not present in a registry"),
        ({"$ref": "file:///etc/passwd"}, "not present in a registry"),
        ({"enum": ["x" * 100] * 1000}, f"it has .* characters, at most {MAX_SCHEMA_LENGTH} are taken"),
        (nested(200), "recursion limit"),
        (nested(2000), "it is not JSON|recursion limit"),
        ({"items": {"multipleOf": 999983}, "contains": {"multipleOf": 0}}, "least common multiple"),
        ('{"type": "integer", "multipleOf": 1, "multipleOf": 999983}', "least common multiple"),
        ({"items": [{"multipleOf": 0.0991}, {"allOf": [{"multipleOf": 9.973}]}]}, "least common multiple"),
        (
            {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in range(6)]} for i in range(7)]},
            "large",
        ),
        ({"type": "string", "const": float("nan")}, "it is not JSON"),
        ({"type": object()}, "it is not JSON"),
    ],
)
def test_schemas_that_are_refused(plain: Case, schema: Any, says: str) -> None:
    began = time.process_time()
    with pytest.raises(InputError, match=f"^schema cannot be used: .*{says}") as caught:
        plain.grammar(schema)
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"value {i * 7919 % 100003}" for i in range(2000)]},
        {"type": "string", "pattern": "^((a{100}){100}){100}$"},
        {"properties": {f"k{i}": {} for i in range(2000)}},
        {"type": "string", "pattern": "^(a|b)*a(a|b){18}$"},
        {"type": "string", "pattern": "^[ -~]*a[ -~]{200}$"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
        {"$defs": {"n": {"properties": {"l": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
        {"type": "integer", "multipleOf": 9973},
    ],
)
def test_dear_schemas_have_quick_steps(plain: Case, schema: Any) -> None:
    began = time.process_time()
    sampler, logits = Sampler(Sampling(), plain.grammar(schema).constraint()), plain.random(0)
    for _ in range(50):
        if sampler.complete or sampler.choose(logits()) in {None, *plain.ends}:
            break
    assert time.process_time() - began < 5


def test_a_schema_is_compiled_once(plain: Case) -> None:
    first, again = plain.grammar({"type": "null"}), plain.grammar('{"type": "null"}')
    assert first.matcher is again.matcher
    one, other = first.constraint(), first.constraint()
    one.advance(plain.tokenizer.token_to_id("n"))
    assert plain.tokenizer.token_to_id("n") in other.allowed(plain.vocabulary)


def test_a_schema_is_json_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "null"}')
    assert read_schema(str(file)) == read_schema('{"type": "null"}') == '{"type": "null"}'
    for source in (str(tmp_path), str(tmp_path / "none"), "a\0b", ""):
        with pytest.raises(InputError, match=r"cannot read schema .*give a JSON schema or the file of one"):
            read_schema(source)
