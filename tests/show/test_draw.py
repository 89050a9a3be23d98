"""A figure written by one call: what it shows is what the answer kept."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star_export.bundle import open_bundle
from star_export.errors import InputError, SettingsError
from star_export.show.draw import draw
from star_export.show.figure import PANEL_SIZE

BundleOf = Callable[..., Path]
TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A dog."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And <b>this</b>?"}]},
]


def coloured(width: int, height: int) -> Image.Image:
    """No place of it is grey."""
    random = np.random.default_rng(width * 1000 + height)
    pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8) + np.array([190, 0, 0], np.uint8)
    return Image.fromarray(pixels)


def bright(panel: np.ndarray, top: int, left: int, shape: tuple[int, int]) -> np.ndarray:
    """Whether each cell of a view is bright ``[rows, columns]``."""
    cell = PANEL_SIZE // max(shape)
    area = panel[top : top + shape[0] * cell, left : left + shape[1] * cell]
    return np.ptp(area[cell // 2 :: cell, cell // 2 :: cell], axis=-1) > 20


def test_the_kept_cells_of_two_cut_pictures_are_bright(bundle: BundleOf, tmp_path: Path) -> None:
    """Pictures of 1x2 and 2x1 tiles without padding, of 4x4 patches; a newline ends each row of a grid."""
    pictures, output = [coloured(56, 28), coloured(28, 56)], tmp_path / "figure.png"
    [found] = draw(
        open_bundle(bundle("next", max_images=2)), pictures, TURNS, output, keep=(40,), max_new_tokens=1
    )
    sheet = np.asarray(Image.open(output)).astype(int)
    width = (sheet.shape[1] - 24) // 5  # five panels and the gaps beside them
    panels = [sheet[54:, 24 + number * width :] for number in range(5)]
    (first_stage, last) = found.stages
    entered, every = first_stage.kept, np.arange(len(first_stage.scores))
    assert len(last.kept) == 40
    shown = ((panels[0], every), (panels[2], entered), (panels[4], entered[last.kept]))
    first = 0
    for top, (rows, columns) in ((0, (4, 8)), (392, (8, 4))):
        whole = first + np.arange(16).reshape(4, 4)
        grid = first + 16 + np.arange(rows * (columns + 1)).reshape(rows, -1)[:, :-1]
        for panel, kept in shown:
            np.testing.assert_array_equal(bright(panel, top, 0, (4, 4)), np.isin(whole, kept))
            np.testing.assert_array_equal(bright(panel, top, 392, (rows, columns)), np.isin(grid, kept))
        first += 16 + rows * (columns + 1)
    assert first == len(every)


def test_a_page_has_the_last_question_of_a_conversation(bundle: BundleOf, tmp_path: Path) -> None:
    output, calls = tmp_path / "figure.HTML", list[tuple[int, int]]()
    answers = draw(
        open_bundle(bundle("onevision", max_images=2)),
        [coloured(50, 40), coloured(20, 60)],
        TURNS,
        output,
        keep=(None, 20),
        max_new_tokens=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert [len(answer.stages[-1].kept) for answer in answers] == [40, 20]
    assert calls == [(0, 2), (1, 2)]
    page = output.read_text()
    assert "<h1>And &lt;b&gt;this&lt;/b&gt;?</h1>" in page
    assert "A dog." not in page
    assert "2 pictures" in page
    assert "stage 2: 20 of 48" in page


def test_nothing_is_written_before_all_is_answered(bundle: BundleOf, tmp_path: Path) -> None:
    opened, output = open_bundle(bundle("next", max_images=2)), tmp_path / "figure.png"
    with pytest.raises(SettingsError, match="keep=999 is not below"):
        draw(opened, [coloured(56, 28)], "What?", output, keep=(40, 999))
    with pytest.raises(InputError, match="max_images=3"):
        draw(opened, [coloured(56, 28)] * 3, "What?", output)
    assert not list(tmp_path.iterdir())
