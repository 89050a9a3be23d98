"""Generation end to end: streaming, budgets, limits, and caches that are used again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star_export.answer.generation import Result
from star_export.answer.pipeline import Pipeline, load
from star_export.answer.sampling import Sampling
from star_export.engines import open_session
from star_export.errors import BundleError, InputError, SettingsError

SHORT = "What is this?"
LONG = "Describe the image in detail. Where is the dog? What is written on the sign? " * 3

Load = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def fresh(bundle: Callable[..., Path]) -> Load:
    """``fresh("mha")``: a pipeline whose caches nobody has written to."""
    return lambda preset, **options: load(bundle(preset, **options))


@pytest.fixture(scope="module", params=["mha", "gqa"])
def pipeline(request: pytest.FixtureRequest, fresh: Load) -> Pipeline:
    return fresh(request.param)


@pytest.fixture(scope="module")
def mha(fresh: Load) -> Pipeline:
    return fresh("mha")


def answer(pipeline: Pipeline, image: Any, prompt: str = SHORT, **options: Any) -> Result:
    return pipeline.generate(image, prompt, **options).result()


def same(first: Result, second: Result) -> bool:
    """Equal in everything but the time they took."""
    return replace(first, timings_ms=second.timings_ms) == second


def test_result_fields(pipeline: Pipeline, picture: Path) -> None:
    result = answer(pipeline, picture, max_new_tokens=9)
    assert len(result.stage1_indices) == pipeline.spec.image_tokens == 518
    assert set(result.stage1_indices) < set(range(576))
    assert list(result.stage1_indices) == sorted(set(result.stage1_indices))
    assert len(result.stage2_indices) == pipeline.spec.keep == 64
    assert set(result.stage2_indices) < set(range(518))
    assert list(result.stage2_indices) == sorted(set(result.stage2_indices))
    assert result.prompt_tokens == 518 + pipeline.tokenize(SHORT, pipeline.prepare(picture)).text_tokens
    assert len(result.token_ids) == 9
    assert result.text == pipeline.tokenizer.decode(list(result.token_ids))
    assert len(result.timings_ms.decode) == 8  # the first token comes from prefill
    steps = result.timings_ms.vision + result.timings_ms.prefill + sum(result.timings_ms.decode)
    assert 0 < steps <= result.timings_ms.total


def test_unpruned_result_fields(fresh: Load, picture: Path) -> None:
    pipeline = fresh("gqa", prune=False)
    result = answer(pipeline, picture, max_new_tokens=3)
    assert result.stage1_indices == result.stage2_indices == tuple(range(576))
    assert result.prompt_tokens == 576 + pipeline.tokenize(SHORT, pipeline.prepare(picture)).text_tokens
    with pytest.raises(SettingsError, match="built with prune=False; keep has no meaning"):
        pipeline.generate(picture, SHORT, keep=64)


@pytest.mark.parametrize("seed", range(8))
def test_streamed_pieces_join_to_the_text(pipeline: Pipeline, picture: Path, seed: int) -> None:
    # A high temperature draws stray bytes, of which some never become a character.
    sampling = Sampling(temperature=3.0, seed=seed)
    generation = pipeline.generate(picture, SHORT, sampling=sampling, max_new_tokens=25 + seed)
    pieces = list(generation)
    assert len(pieces) > 1
    assert "".join(pieces) == generation.result().text
    assert list(generation) == []  # it runs once


def test_pieces_come_one_by_one_and_result_runs_the_rest(mha: Pipeline, picture: Path) -> None:
    generation = mha.generate(picture, SHORT)
    first = next(iter(generation))
    result = generation.result()
    assert result.text.startswith(first)
    assert same(result, answer(mha, picture))


def test_smaller_keep_at_run_time(pipeline: Pipeline, picture: Path) -> None:
    results = [answer(pipeline, picture, keep=keep, max_new_tokens=1) for keep in (1, 16, 64)]
    kept = [set(result.stage2_indices) for result in results]
    assert [len(indices) for indices in kept] == [1, 16, 64]
    assert kept[0] < kept[1] < kept[2]  # the best k are among the best k + n


def test_larger_keep_up_to_the_maximum(mha: Pipeline, picture: Path) -> None:
    assert len(answer(mha, picture, keep=288, max_new_tokens=1).stage2_indices) == 288


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 289}, "^keep=289 is over this bundle's maximum of 288; .* max_keep=289"),
        ({"keep": 518}, "^keep=518 is not below the 518 tokens"),
        ({"keep": 0}, "^keep must be at least 1"),
        ({"max_new_tokens": 0}, "^max_new_tokens must be from 1 to 32, got 0"),
        ({"max_new_tokens": 33}, "^max_new_tokens must be from 1 to 32, got 33"),
    ],
)
def test_numbers_out_of_range(mha: Pipeline, picture: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        mha.generate(picture, SHORT, **options)


def test_max_new_tokens_cuts_the_same_answer_short(pipeline: Pipeline, picture: Path) -> None:
    whole = answer(pipeline, picture).token_ids
    assert len(whole) == 32
    for limit in (1, 2, 17):
        assert answer(pipeline, picture, max_new_tokens=limit).token_ids == whole[:limit]


def test_prompt_and_picture_change_the_answer(pipeline: Pipeline, picture: Path) -> None:
    other = Image.effect_noise((200, 300), 90).convert("RGB")
    results = [answer(pipeline, picture), answer(pipeline, picture, LONG), answer(pipeline, other)]
    assert len({result.token_ids for result in results}) == 3
    assert len({result.stage1_indices for result in results}) == 2  # stage 1 does not read the prompt
    assert len({result.stage2_indices for result in results}) == 3


def test_used_caches_leave_no_trace(fresh: Load, picture: Path) -> None:
    for preset in ("mha", "gqa"):
        used = fresh(preset)
        before = answer(used, picture, SHORT)
        answer(used, picture, LONG, keep=288)
        assert same(answer(used, picture, SHORT), before)
        assert same(answer(fresh(preset), picture, SHORT), before)


def test_a_shorter_sequence_after_a_longer_one(fresh: Load, picture: Path) -> None:
    for preset in ("mha", "gqa"):
        used = fresh(preset)
        answer(used, picture, LONG, keep=288)
        assert same(answer(used, picture, SHORT, keep=5), answer(fresh(preset), picture, SHORT, keep=5))


def test_an_abandoned_generation_leaves_no_trace(fresh: Load, mha: Pipeline, picture: Path) -> None:
    used = fresh("mha")
    next(iter(used.generate(picture, LONG)))
    assert same(answer(used, picture), answer(mha, picture))


def test_sampling_is_repeatable_by_seed(mha: Pipeline, picture: Path) -> None:
    first, again, other = (
        answer(mha, picture, sampling=Sampling(temperature=2.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert same(first, again)
    assert first.token_ids != other.token_ids


def test_every_kind_of_image_gives_the_same(mha: Pipeline, picture: Path) -> None:
    expected = answer(mha, picture, max_new_tokens=4)
    opened = Image.open(picture)
    for image in (str(picture), picture.read_bytes(), opened, [opened], (picture,)):
        assert same(answer(mha, image, max_new_tokens=4), expected)


def test_no_image_or_too_many(mha: Pipeline, picture: Path) -> None:
    with pytest.raises(InputError, match="no picture is given"):
        mha.generate([], SHORT)
    with pytest.raises(InputError, match="takes at most 1 picture, got 2; build it again with max_images=2"):
        mha.generate([picture] * 2, SHORT)


def words_of(pipeline: Pipeline, picture: Path, tokens: int) -> str:
    """A prompt that has exactly ``tokens`` text tokens once it is rendered."""
    return "a" + " a" * (tokens - pipeline.tokenize("a", pipeline.prepare(picture)).text_tokens)


def test_a_prompt_that_just_fits_fills_the_caches(mha: Pipeline, picture: Path) -> None:
    tokens = mha.tokenize(words_of(mha, picture, 128), mha.prepare(picture))
    assert tokens.text_tokens == 128
    result = answer(mha, picture, words_of(mha, picture, 128), keep=288)
    assert result.prompt_tokens == 518 + 128
    assert len(result.token_ids) == 32


def test_a_prompt_that_is_too_long(mha: Pipeline, picture: Path) -> None:
    with pytest.raises(
        InputError, match=r"has 129 text tokens, this bundle has room for 128; .* max_text_tokens=129"
    ):
        mha.generate(picture, words_of(mha, picture, 129))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("<image><image> which one?", "the prompt has 2 <image> tokens, expected 1, one for each picture"),
        ("What is this? <image>", "no text follows <image>"),
    ],
)
def test_prompts_that_cannot_be_used(mha: Pipeline, picture: Path, prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mha.generate(picture, prompt)


def test_stops_at_an_end_token(mha: Pipeline, picture: Path) -> None:
    whole = answer(mha, picture).token_ids
    end = whole[5]
    stop = whole.index(end) + 1
    model = replace(mha.spec.model, eos_token_ids=(511, end))
    changed = replace(mha.bundle, spec=replace(mha.spec, model=model))
    result = answer(Pipeline(changed, open_session(changed)), picture)
    assert result.token_ids == whole[:stop]
    assert len(result.timings_ms.decode) == stop - 1


def test_special_tokens_are_not_in_the_text(mha: Pipeline, picture: Path) -> None:
    # So hot that every token is as likely as any other.
    hot = [Sampling(temperature=1e9, seed=seed) for seed in range(12)]
    results = [answer(mha, picture, sampling=sampling) for sampling in hot]
    special = {key for key, token in mha.tokenizer.get_added_tokens_decoder().items() if token.special}
    assert any(special & set(result.token_ids) for result in results)
    assert not any("<s>" in result.text or "</s>" in result.text for result in results)
    assert all(2 not in result.token_ids[:-1] for result in results)


def test_threads_do_not_change_the_answer(bundle: Callable[..., Path], mha: Pipeline, picture: Path) -> None:
    single = load(bundle("mha"), threads=1, verify=True)
    assert answer(single, picture).token_ids == answer(mha, picture).token_ids


def test_results_are_plain_json_values(mha: Pipeline, picture: Path) -> None:
    result = answer(mha, picture, max_new_tokens=2)
    data = result.to_dict()
    assert json.loads(json.dumps(data))["stage2_indices"] == list(result.stage2_indices)
    assert data["timings_ms"]["decode"] == result.timings_ms.decode


def test_load_refuses_an_unknown_backend(bundle: Callable[..., Path]) -> None:
    with pytest.raises(SettingsError, match="unknown backend onnx-runtime; did you mean onnxruntime"):
        load(bundle("mha"), backend="onnx-runtime")


def test_load_refuses_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)


def test_a_generation_that_was_overtaken_stops(mha: Pipeline, picture: Path) -> None:
    first = iter(mha.generate(picture, "What is in the picture?"))
    next(first)
    assert mha.generate(picture, "Where?", max_new_tokens=1).result().token_ids
    with pytest.raises(InputError, match="another generation or prefill took"):
        list(first)
