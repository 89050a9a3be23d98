"""The reference's side of several pictures, tiles and towers, against transformers' own outputs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star_export.errors import CheckpointError
from star_export.preprocessing.processor import read_processor
from star_export.testing.checkpoints import PRESETS, make_checkpoint
from star_export.validation.expected import ExpectedInput, expected_input
from star_export.validation.probes import Probe, make_probes
from star_export.validation.reference import STAYS, Reference

ONE, SEVERAL = make_probes(2, max_images=3)


def seen_by(folder: Path, probe: Probe) -> tuple[Reference, ExpectedInput]:
    return Reference(folder), expected_input(read_processor(folder), probe.pictures, probe.prompt)


def maps(reference: Reference, pixels: Tensor, layer: int) -> Tensor:
    """Attention of a layer of the tower, ``[T, H, N, N]``."""
    tower = reference.model.model.vision_tower
    with torch.no_grad():
        attention: Tensor = tower(pixels, output_attentions=True).attentions[layer]
    return attention


@pytest.mark.parametrize("probe", [ONE, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize(
    "preset", ["full", "feature-layers", "interleave", "next", "next-mistral", "next-llama3", "onevision"]
)
def test_features_and_logits_are_transformers(
    checkpoint: Callable[[str], Path], preset: str, probe: Probe
) -> None:
    reference, given = seen_by(checkpoint(preset), probe)
    seen = reference.encode_images(given.pictures)
    with torch.no_grad():
        features = reference.model.get_image_features(**given.pictures).pooler_output
    assert len(seen) == len(features) == len(probe.pictures)
    assert all(torch.equal(a.features, b) for a, b in zip(seen, features, strict=True))
    assert all(len(picture.scores) == len(picture.features) for picture in seen)
    lengths = [len(picture.scores) for picture in seen]
    prompt = given.prompt(lengths, lengths)
    assert torch.equal(prompt.input_ids, given.full_ids)
    state = reference.prefill(
        prompt.input_ids, torch.cat(features), prompt.image_positions, prompt.query_positions
    )
    (whole,) = reference.forward(given.full_ids, given.pictures, rows=1)
    torch.testing.assert_close(state.logits, whole, rtol=1e-4, atol=1e-4)
    found = [int(state.logits.argmax())]
    for _ in range(3):
        found.append(int(reference.decode(state, found[-1]).argmax()))
    assert found == reference.generate(given.full_ids, given.pictures, max_new_tokens=4)


def test_scores_of_tiles(checkpoint: Callable[[str], Path]) -> None:
    """A square picture of 2x2 tiles, 4x4 patches each: nothing is left out, and a newline ends each row."""
    square = make_probes(3)[2]
    reference, given = seen_by(checkpoint("next"), square)
    (picture,) = reference.encode_images(given.pictures)
    weights = maps(reference, given.pixels[0], -2)
    received = weights.mean(1)[:, 1:, 1:].mean(1)  # CLS neither asks nor is asked
    assert received.shape == (5, 16)
    torch.testing.assert_close(picture.scores[:16], received[0], rtol=1e-5, atol=0)
    grid = picture.scores[16:].reshape(8, 9)
    assert (grid[:, 8] == STAYS).all()
    assert picture.newlines == 8
    for number, tile in enumerate(received[1:]):
        row, column = 4 * (number // 2), 4 * (number % 2)
        torch.testing.assert_close(
            grid[row : row + 4, column : column + 4], tile.reshape(4, 4), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize(
    ("tower", "select", "first", "structure"),
    [
        ("clip_vision_model", "default", 1, 0),
        ("clip_vision_model", "full", 1, 1),
        ("siglip_vision_model", "default", 1, 0),  # the first patch, for want of CLS
        ("siglip_vision_model", "full", 0, 0),
    ],
)
def test_which_tokens_score(tmp_path: Path, tower: str, select: str, first: int, structure: int) -> None:
    shape = replace(PRESETS["full"], tower=tower, feature_select=select)
    reference, given = seen_by(make_checkpoint(tmp_path / "model", shape), ONE)
    (picture,) = reference.encode_images(given.pictures)
    weights = maps(reference, given.pixels[0], -2)
    received = weights.mean(1)[0, first:, first:].mean(0)
    assert (picture.scores[:structure] == STAYS).all()
    torch.testing.assert_close(picture.scores[structure:], received, rtol=1e-5, atol=0)


def test_a_prompt_with_fewer_visual_tokens(checkpoint: Callable[[str], Path]) -> None:
    reference, given = seen_by(checkpoint("interleave"), SEVERAL)
    lengths = [len(picture.scores) for picture in reference.encode_images(given.pictures)]
    short = given.prompt(lengths, [9, 5, 7])
    token = given.image_token_id
    assert torch.equal(short.input_ids[short.input_ids != token], given.full_ids[given.full_ids != token])
    # The template writes the pictures of a turn side by side, before its text.
    runs = torch.diff(short.image_positions, prepend=torch.tensor([-2])).ne(1).cumsum(0)
    assert torch.bincount(runs)[1:].tolist() == [9, 5 + 7]
    assert torch.equal(
        short.query_positions, torch.arange(int(short.image_positions[-1]) + 1, len(short.input_ids))
    )
    with pytest.raises(
        CheckpointError, match=f"makes {sum(lengths)} image tokens, its model {sum(lengths) - 1}"
    ):
        given.prompt([lengths[0] - 1, *lengths[1:]], [9, 5, 7])


def test_adjacent_pictures_are_told_apart(checkpoint: Callable[[str], Path]) -> None:
    together = replace(SEVERAL, prompt="What differs?")
    reference, given = seen_by(checkpoint("onevision"), together)
    lengths = [len(picture.scores) for picture in reference.encode_images(given.pictures)]
    assert len(set(lengths)) == 1  # whole pictures, none is cut
    short = given.prompt(lengths, [3, 2, 1])
    assert len(short.image_positions) == 6
    assert len(short.input_ids) == len(given.full_ids) - sum(lengths) + 6


def test_a_window_does_not_shorten_the_caches(tmp_path: Path) -> None:
    """A bundle's caches fit in it, and hold every token."""
    shape = replace(PRESETS["next-mistral"], sliding_window=64)
    reference, given = seen_by(make_checkpoint(tmp_path / "model", shape), ONE)
    (picture,) = reference.encode_images(given.pictures)
    prompt = given.prompt([len(picture.scores)], [len(picture.scores)])
    state = reference.prefill(
        prompt.input_ids, picture.features, prompt.image_positions, prompt.query_positions
    )
    assert {layer.keys.shape[2] for layer in state.cache.layers} == {len(prompt.input_ids)}
    assert len(prompt.input_ids) > 64


def test_the_newline_is_rounded(checkpoint: Callable[[str], Path]) -> None:
    reference = Reference(checkpoint("next"))
    newline = reference.model.model.image_newline.clone()
    reference.round_weights(lambda _: "float16")
    assert torch.equal(reference.model.model.image_newline, newline.half().float())
    assert not torch.equal(reference.model.model.image_newline, newline)
