"""One pipeline, one set of KV caches: whose they are, and how they are left behind."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from star_export.answer.generation import Generation
from star_export.answer.pipeline import Pipeline, load
from star_export.answer.request import Request
from star_export.answer.sampling import Sampling
from star_export.answer.steps import DecodeState
from star_export.contract import DECODE, INPUT_IDS
from star_export.engines.onnxruntime import OnnxRuntimeArray
from star_export.errors import InputError, NonFiniteError, SettingsError, StarExportError
from star_export.evaluation.answering import respond

PROMPT = "What is this?"
LONGER = "What is this, and where is the dog? " * 3
GREEDY, WARM = Sampling(), Sampling(temperature=1.0, top_p=0.9, seed=0)


@pytest.fixture(scope="module")
def mha(bundle: Callable[..., Path]) -> Pipeline:
    """Random weights: its answers end at the limit."""
    return load(bundle("mha"), threads=1)


@pytest.fixture
def good(mha: Pipeline, picture: Path) -> Request:
    return mha.request(picture, PROMPT, max_new_tokens=5)


@pytest.fixture
def right(bundle: Callable[..., Path], good: Request) -> tuple[int, ...]:
    """The good request's tokens, from a pipeline that nothing has happened to."""
    return tokens(load(bundle("mha"), threads=1), good)


def tokens(pipeline: Pipeline, request: Request) -> tuple[int, ...]:
    return pipeline.answer(request).result().token_ids


def spoiled(pipeline: Pipeline, request: Request, sampling: Sampling = GREEDY) -> Request:
    """NaN, further into the KV caches than the request itself would reach."""
    (image,) = request.images
    nan, tokens = (
        replace(image, pixels=np.full_like(image.pixels, np.nan)),
        pipeline.tokenize(LONGER, request.images),
    )
    return replace(request, images=(nan,), tokens=tokens, keep=288, sampling=sampling)


def prefilled(pipeline: Pipeline, request: Request, **options: Any) -> DecodeState:
    return pipeline.steps.prefill(request.tokens, pipeline.steps.encode_image(*request.images), **options)


# Logits that are not finite.


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_nan_is_told_and_does_not_reach_the_next_answer(
    mha: Pipeline, good: Request, right: tuple[int, ...], sampling: Sampling
) -> None:
    bad = mha.answer(spoiled(mha, good, sampling))
    for ask in (lambda: list(bad), bad.result, bad.result):
        with pytest.raises(
            NonFiniteError, match=r"logits are not finite: an overflow, .* dtype=bfloat16 or fp32_layers"
        ) as error:
            ask()
    assert isinstance(error.value, StarExportError)
    assert tokens(mha, good) == right


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_one_bad_logit_after_some_tokens(
    mha: Pipeline, good: Request, monkeypatch: pytest.MonkeyPatch, sampling: Sampling, value: float
) -> None:
    """A decode graph that overflows in one logit, at its third token."""
    run, steps = mha.session.run, []

    def overflowing(graph: str, feeds: Any, caches: Any = None) -> Any:
        outputs = run(graph, feeds, caches)
        if graph == DECODE:
            steps.append(feeds[INPUT_IDS])
            if len(steps) == 2:
                _poke(outputs["logits"], value)
        return outputs

    monkeypatch.setattr(mha.session, "run", overflowing)
    with pytest.raises(NonFiniteError):
        tokens(mha, replace(good, sampling=sampling))
    assert len(steps) == 2


def _poke(output: OnnxRuntimeArray, value: float) -> None:
    output.value.numpy()[0, 7] = value  # on the CPU, the memory itself


def test_nan_in_an_evaluation(mha: Pipeline, good: Request, right: tuple[int, ...]) -> None:
    bad = mha.steps.encode_image(*spoiled(mha, good).images).features
    with pytest.raises(NonFiniteError):
        respond(mha, mha.tokenize(LONGER, good.images), [np.array(bad.numpy())], 288, None, _Task())  # type: ignore[arg-type, union-attr]
    fine = mha.steps.encode_image(*good.images).features
    answer = respond(mha, good.tokens, [np.array(fine.numpy())], None, None, _Task())  # type: ignore[arg-type, union-attr]
    assert answer.text == mha.tokenizer.decode(list(right)).strip()


class _Task:
    """A fake task: as long as the good answer, always right."""

    max_new_tokens = 5

    def score(self, example: object, text: str) -> float:
        return 1.0


def test_a_sequence_that_was_cleaned_away_cannot_go_on(mha: Pipeline, good: Request) -> None:
    state = prefilled(mha, spoiled(mha, good))
    with pytest.raises(NonFiniteError):
        state.best_token()
    with pytest.raises(InputError, match="cleaned after logits that were not finite"):
        mha.steps.decode(state, 1)
    with pytest.raises(NonFiniteError):
        state.best_token()


def test_a_stale_sequence_cleans_no_other(mha: Pipeline, good: Request, right: tuple[int, ...]) -> None:
    caches = mha.session.allocate_caches()
    bad = prefilled(mha, spoiled(mha, good), caches=caches)
    caches.zero()  # as whoever reads the logits himself must
    state = prefilled(mha, good, caches=caches)
    with pytest.raises(NonFiniteError):
        bad.best_token()
    found = [state.best_token()]
    while len(found) < 5:
        mha.steps.decode(state, found[-1])
        found.append(state.best_token())
    assert tuple(found) == right


# Two that want the same caches.


def test_prefill_refuses_to_overwrite_a_running_generation(
    mha: Pipeline, good: Request, right: tuple[int, ...]
) -> None:
    running = mha.answer(good)
    next(iter(running))
    with pytest.raises(
        InputError, match=r"a generation is running .* finish it or close\(\) it, or give prefill"
    ):
        prefilled(mha, good)
    own = prefilled(mha, good, caches=mha.session.allocate_caches())
    assert own.best_token() == right[0]
    assert running.result().token_ids == right
    assert prefilled(mha, good).best_token() == right[0]


@pytest.mark.parametrize("end", ["close", "drop", "finish", "fail", "overtake"])
def test_a_generation_that_is_over_blocks_nobody(mha: Pipeline, good: Request, end: str) -> None:
    running: Generation | None = mha.answer(spoiled(mha, good) if end == "fail" else good)
    gc.disable()  # nothing may depend on when the collector runs
    try:
        if end == "fail":
            with pytest.raises(NonFiniteError):
                list(running)
        else:
            next(iter(running))
        if end == "close":
            running.close()
            with pytest.raises(InputError, match="closed before its end"):
                running.result()
        elif end == "finish":
            running.result()
        elif end == "overtake":
            mha.answer(good).result()
        elif end == "drop":
            running = None
        assert prefilled(mha, good).position == good.tokens.input_ids.shape[1]
    finally:
        gc.enable()


def test_a_generation_that_was_overtaken_says_so_every_time(mha: Pipeline, good: Request) -> None:
    first, second = mha.answer(good), mha.answer(good)
    next(iter(first))
    next(iter(second))
    for _ in range(2):
        with pytest.raises(InputError, match="another generation or prefill took the KV caches"):
            first.result()
    with pytest.raises(InputError, match="a generation is running"):  # the second
        prefilled(mha, good)
    assert len(second.result().token_ids) == 5


def test_a_sequence_whose_caches_were_taken_cannot_go_on(mha: Pipeline, good: Request) -> None:
    caches = mha.session.allocate_caches()
    aside = prefilled(mha, good, caches=caches)
    for take in (lambda: prefilled(mha, good), lambda: tokens(mha, good)):
        state = prefilled(mha, good)
        mha.steps.decode(state, 1)
        take()
        with pytest.raises(InputError, match="finish one before the next, or give prefill caches of its own"):
            mha.steps.decode(state, 1)
    mha.steps.decode(aside, 1)
    assert aside.position == good.tokens.input_ids.shape[1] + 1


# What a request says.


def test_a_request_takes_its_defaults_from_the_bundle(mha: Pipeline, picture: Path) -> None:
    request = mha.request(picture, PROMPT)
    assert (request.keep, request.max_new_tokens) == (64, 32)
    assert (request.sampling, request.stop) == (Sampling(), ())
    asked = mha.request(picture, PROMPT, keep=3, max_new_tokens=32, sampling=WARM, stop=["x"])
    assert (asked.keep, asked.max_new_tokens, asked.sampling, asked.stop) == (3, 32, WARM, ("x",))
    with pytest.raises(SettingsError, match="stop takes"):
        mha.request(picture, PROMPT, stop=[""])


def test_a_stop_string_ends_the_answer(mha: Pipeline, picture: Path) -> None:
    whole = mha.generate(picture, PROMPT).result()
    cut = mha.generate(picture, PROMPT, stop=[whole.text[4:7]]).result()
    assert cut.text == whole.text[: whole.text.index(whole.text[4:7])]
    assert (cut.finish_reason, whole.finish_reason) == ("stop", "length")
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
