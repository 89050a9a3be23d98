"""What a schema and logprobs cost at every step, for vocabularies of 32,000 and 152,000 tokens.

The vocabularies are made of the words in Python's own sources; a step of a bundle is measured in turns with
the choice of a token, so that whatever else the machine does meets both.
"""

import argparse
import json
import re
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from star_export.answer.grammar import Grammar, Grammars
from star_export.answer.pipeline import load
from star_export.answer.sampling import Sampler, Sampling

SIZES = (32_000, 152_000)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer", "minimum": 0},
        "colors": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "box": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
    },
    "required": ["name", "count", "colors", "box"],
    "additionalProperties": False,
}
ANSWER = {"name": "a dog on the beach", "count": 2, "colors": ["red", "blue"], "box": [0.25, 1, 13.5, 200]}
END = "<|end|>"


def words() -> Iterator[str]:
    """Every beginning of every word in the standard library's sources."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            for word in re.findall(r" ?\w+|[^\w\s]+|\s+", path.read_text(errors="ignore")):
                yield from (word[:end] for end in range(1, min(len(word), 16) + 1))


def tokenizer(size: int) -> Tokenizer:
    """A byte-level one of ``size`` tokens."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = dict.fromkeys(sorted(level.alphabet()))
    for word in words():
        if len(names) == size - 1:
            break
        names[level.pre_tokenize_str(word)[0][0]] = None
    found = Tokenizer(models.BPE({name: i for i, name in enumerate([*names, END])}, [], ignore_merges=True))
    found.pre_tokenizer, found.decoder = level, decoders.ByteLevel()
    found.add_special_tokens([END])
    return found


def milliseconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def follow(grammar: Grammar, forced: list[int], size: int, sampling: Sampling) -> list[float]:
    """Milliseconds of every choice on the way to an answer, of which each token is by far the likeliest."""
    sampler, spent = Sampler(sampling, grammar.constraint() if grammar else None), []
    logits = np.random.default_rng(0).normal(size=size).astype(np.float32)
    for token in forced:
        logits[token] += 100
        spent.append(milliseconds(lambda: sampler.choose(logits)))
        logits[token] -= 100
    return spent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", help="Whose decode step the costs are compared with.")
    parser.add_argument("picture")
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    pipeline = load(asked.bundle, threads=1)
    prepared = pipeline.request(asked.picture, "What is this?")
    state = pipeline.steps.prefill(
        prepared.tokens, *pipeline.steps.encode_images(prepared.images), new_tokens=asked.repeats + 1
    )
    cases = {}
    for size in SIZES:
        made = tokenizer(size)
        grammars, end = Grammars(made, size), made.token_to_id(END)
        tables = milliseconds(lambda grammars=grammars, end=end: grammars.grammar({"type": "null"}, [end]))
        compiled = milliseconds(lambda grammars=grammars, end=end: grammars.grammar(SCHEMA, [end]))
        print(f"{size} tokens: tables {tables:.0f} ms, once; this schema {compiled:.1f} ms, once")
        grammar, forced = grammars.grammar(SCHEMA, [end]), [*made.encode(json.dumps(ANSWER)).ids]
        cases |= {
            f"{size}, argmax": (None, forced, size, Sampling()),
            f"{size}, schema": (grammar, forced, size, Sampling()),
            f"{size}, sampled": (None, forced, size, Sampling(temperature=1.0, top_p=0.9, seed=0)),
            f"{size}, schema, sampled": (grammar, forced, size, Sampling(temperature=1.0, top_p=0.9, seed=0)),
            f"{size}, 20 logprobs": (None, forced, size, Sampling(top_logprobs=20)),
        }
    steps, best = [], {name: [np.inf] for name in cases}
    for _ in range(asked.repeats):
        steps.append(milliseconds(lambda: (pipeline.steps.decode(state, 1), state.best_token())))
        for name, case in cases.items():
            spent = follow(*case)
            best[name] = spent if best[name] == [np.inf] else list(map(min, best[name], spent))
    step = min(steps)
    print(f"a decode step of {asked.bundle}: {step:.2f} ms")
    for name, spent in best.items():
        mean = sum(spent) / len(spent)
        print(
            f"{name:26}{mean:8.3f} ms a token, at most{max(spent):8.3f}; {mean / step:8.3f} of a decode step"
        )


if __name__ == "__main__":
    main()
