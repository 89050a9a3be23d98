"""C++ and Python make the same prompts, and the same answers of tokens."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer

from star_export.answer.transcript import Transcript, check_stop
from star_export.errors import BundleError, StarExportError
from star_export.preprocessing.derived_forms import prompt_forms
from star_export.preprocessing.parameters import read_tokenizer
from star_export.preprocessing.prompts import PromptSpec, end_token_ids, render, tokenize
from star_export.testing.tokenizers import TOKENIZERS
from star_export.typed import convert
from tests.cpp.talker import Talker
from tests.cpp.texts import random_texts
from tests.preprocessing.test_templates import TEMPLATES, spec_of

KINDS = (*TOKENIZERS, "mini", "mini-onevision", "llama2-first", "metaspace", "qwen2-odd", "llama2-unknown")


def _outcome(ask: Callable[[], Any]) -> Any:
    """What a function gives, or the error it raises."""
    try:
        return ask()
    except StarExportError as error:
        return type(error), str(error)


def _tell(talker: Talker, spec: PromptSpec) -> None:
    file = {"image": {}, "prompt": msgspec.to_builtins(spec)}
    talker.ask("prompt", file=file, path="preprocessor.json", image_token_id=spec.image_token_id)


def _open(talker: Talker, content: str, folder: Path) -> tuple[Tokenizer, PromptSpec]:
    path = folder / "tokenizer.json"
    path.write_text(content)
    image = Tokenizer.from_str(content).token_to_id("<image>")
    begin = Tokenizer.from_str(content).encode("").tokens
    spec = PromptSpec(
        image_token="<image>",
        image_token_id=image,
        chat_template=None,
        special_tokens={"bos_token": begin[0]} if begin else {},
    )
    _tell(talker, spec)
    talker.ask("read_tokenizer", path=str(path))
    return read_tokenizer(path, spec), spec


@pytest.mark.parametrize("name", [None, *TEMPLATES])
@pytest.mark.parametrize("content", ["parts", "string"])
def test_prompts_are_the_same(name: str | None, content: Any, talker: Talker) -> None:
    spec = replace(spec_of(""), chat_template=TEMPLATES[name] if name else None, content=content)
    spec = replace(spec, forms=prompt_forms(spec))
    _tell(talker, spec)
    if name is not None and spec.forms is None:
        found = _outcome(lambda: talker.ask("render", text="What?", images=1))
        assert "give the whole prompt, with <image> where each picture stands" in found[1]
        return
    for text in random_texts(500, seed=3):
        for images in (0, 1, 3):
            expected = _outcome(lambda text=text, images=images: render(text, spec, images=images))
            found = _outcome(lambda text=text, images=images: talker.ask("render", text=text, images=images))
            assert found == expected, repr(text)


@pytest.mark.parametrize("kind", KINDS)
def test_tokenized_prompts_are_the_same(
    kind: str, talker: Talker, files: dict[str, str], tmp_path: Path
) -> None:
    tokenizer, spec = _open(talker, files[kind], tmp_path)
    choose = random.Random(kind)

    def python(text: str, counts: Sequence[int]) -> Any:
        found = tokenize(text, tokenizer, spec, tokens_per_image=counts)
        arrays = (found.input_ids, found.image_positions, found.query_positions)
        return [*(array[0].tolist() for array in arrays), found.text_tokens]

    begin = spec.special_tokens.get("bos_token", "")
    for text in random_texts(1000, seed=5):
        prompt = choose.choice(("", begin)) + text.replace("<ima", "<image>") + choose.choice(("", " Why?"))
        counts = [choose.randint(0, 9) for _ in range(prompt.count("<image>") + choose.choice((0, 0, 0, 1)))]
        found = _outcome(lambda p=prompt, c=counts: talker.ask("tokenize", text=p, tokens_per_image=c))
        assert found == _outcome(lambda p=prompt, c=counts: python(p, c)), repr(prompt)
    for text in (*list(tokenizer.get_vocab())[:300], "none of these", "it's \"\n\x85\u200b\\", "<|eot_id|>"):
        found = _outcome(lambda t=text: talker.ask("end_tokens", texts=[t]))
        assert found == _outcome(lambda t=text: list(end_token_ids([t], tokenizer)))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_come_in_the_same_pieces(
    kind: str, talker: Talker, files: dict[str, str], tmp_path: Path
) -> None:
    tokenizer, _ = _open(talker, files[kind], tmp_path)
    choose, size = random.Random(kind), tokenizer.get_vocab_size()
    sources = [tokenizer.encode(text).ids for text in random_texts(1000, seed=7)]
    sources += [[choose.randrange(size + 2) for _ in range(choose.randint(1, 30))] for _ in range(1000)]
    for tokens in sources:
        text = tokenizer.decode(tokens)
        places = [choose.randrange(len(text) + 1) for _ in range(choose.choice((0, 1, 3)))]
        stop = [part for at in places if (part := text[at : at + choose.randint(1, 5)])]
        eos, limit = [choose.randrange(size) for _ in range(choose.choice((0, 1)))], choose.choice((5, 100))
        found = talker.ask("transcript", tokens=tokens, eos=eos, limit=limit, stop=stop)
        assert found == _pieces(
            Transcript(tokenizer, eos_token_ids=eos, max_new_tokens=limit, stop=stop), tokens
        )


def _pieces(transcript: Transcript, tokens: list[int]) -> Any:
    pieces = []
    for token in tokens:
        pieces.append(transcript.push(token))
        if transcript.finish_reason:
            break
    pieces.append(transcript.finish())
    return [pieces, transcript.text, transcript.finish_reason]


@pytest.mark.parametrize(
    "stop", [[""], ["x" * 257], ["é" * 256], ["x"] * 17, ["it's", "\n\"'"], ["a\x00\u200b", ""]]
)
def test_stop_strings_are_checked_alike(
    stop: list[str], talker: Talker, files: dict[str, str], tmp_path: Path
) -> None:
    _open(talker, files["bytes"], tmp_path)
    found = _outcome(lambda: talker.ask("transcript", tokens=[], eos=[], limit=1, stop=stop))
    expected = _outcome(lambda: check_stop(stop))
    assert found == (expected if isinstance(expected[0], type) else [[""], "", None])


def _damaged(prompt: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A prompt's part with one value missing, more, or of another kind."""
    for key in prompt:
        yield {name: value for name, value in prompt.items() if name != key}
        for wrong in (None, 5, -1, 1.5, True, "x", "", [], ["x"], [5], {}, {"a": 1}):
            yield {**prompt, key: wrong}
    yield {**prompt, "unknown": 1}
    for key, value in prompt["forms"].items():
        for forms in _damaged_form(prompt["forms"], key, value):
            yield {**prompt, "forms": forms}


def _damaged_form(forms: dict[str, Any], key: str, value: Any) -> Iterator[dict[str, Any]]:
    yield {name: other for name, other in forms.items() if name != key}
    yield {**forms, "unknown": 1}
    for wrong in (None, 5, "x", {}):
        yield {**forms, key: wrong}
    if isinstance(value, dict):
        yield {**forms, key: {**value, "strip": "start"}}
        yield {**forms, key: {**value, "unknown": "start"}}


def _refusal(prompt: dict[str, Any]) -> str | None:
    """What Python says of a prompt's part, if it refuses it."""
    try:
        convert(prompt, PromptSpec)
    except ValueError as error:
        return str(error)
    return None


def test_damaged_parameters_are_refused_alike(talker: Talker) -> None:
    whole = replace(
        spec_of(""), chat_template="x", forms=prompt_forms(replace(spec_of(""), chat_template=None))
    )
    count = 0
    for prompt in _damaged(msgspec.to_builtins(whole)):
        if (reason := _refusal(prompt)) is None:
            continue
        count += 1
        with pytest.raises(BundleError) as raised:
            talker.ask("prompt", file={"image": {}, "prompt": prompt}, path="p.json", image_token_id=32000)
        begin, end = "p.json is damaged: prompt", "; build the bundle again"
        found = str(raised.value)
        assert found.startswith(begin), prompt
        assert found.removeprefix(begin).removesuffix(end).lstrip(".: ") == reason, prompt
    assert count > 80


def test_damaged_tokenizers_are_refused(talker: Talker, files: dict[str, str], tmp_path: Path) -> None:
    """Whatever is left out or wrong: an error of a bundle, or a tokenizer that does not crash."""
    path, choose, refused = tmp_path / "tokenizer.json", random.Random(1), 0
    wrongs: tuple[Any, ...] = (
        None,
        -1,
        2**31,
        2**64,
        1e300,
        True,
        "",
        "x",
        [],
        {},
        [[]],
        ["a"],
        {"type": "x"},
    )
    for kind in ("llama2", "qwen2", "llama3", "metaspace", "llama2-lines"):
        for _ in range(300):
            file = json.loads(files[kind])
            _damage(file, choose, wrongs)
            path.write_text(json.dumps(file))
            found = _outcome(lambda: _use(talker, path))
            if found is not None and found[0] is BundleError:
                assert found[1].startswith(str(path))
                refused += 1
        content = files[kind].encode()
        for _ in range(60):
            at = choose.randrange(len(content))
            path.write_bytes(content[:at] + bytes([choose.randrange(256)]) * choose.randint(0, 3))
            with pytest.raises(BundleError, match=r"is damaged: it (is not JSON|cannot be read)"):
                talker.ask("open", path=str(path))
    assert refused > 700


def _use(talker: Talker, path: Path) -> None:
    talker.ask("open", path=str(path))
    talker.ask("encode", texts=["What é 犬 12  <image>"], special=True)
    talker.ask("decode", ids=[[5, 99, 2**31, 2**40, -1, 270]], skip=False)


def _damage(value: Any, choose: random.Random, wrongs: tuple[Any, ...]) -> None:
    """Change one thing inside of a list or dictionary."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = choose.choice(keys)
        inner = value[key]
        if not (isinstance(inner, dict | list) and inner and choose.random() < 0.8):
            break
        value = inner
    if isinstance(value, dict) and choose.random() < 0.4:
        del value[key]
    else:
        value[key] = choose.choice(wrongs)
