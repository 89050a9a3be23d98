"""The figure says what the numbers say: read back from its pixels."""

from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFont

from star_export.answer.generation import Result, Timings
from star_export.preprocessing.views import View
from star_export.show import figure
from star_export.show.figure import (
    draw_kept,
    draw_sheet,
    heat_map,
    stage_panels,
    wrap,
)
from star_export.show.page import render_page
from star_export.show.scores import Scores, StageScores

SIDE = 12
PATCHES = SIDE * SIDE
RANDOM = np.random.default_rng(3)
#: Every patch of one colour, none of them grey.
COLOURS = RANDOM.integers(0, 100, (PATCHES, 3), dtype=np.uint8) + np.array([150, 0, 0], np.uint8)
PICTURE = COLOURS.reshape(SIDE, SIDE, 3).repeat(8, axis=0).repeat(8, axis=1)
VIEW = View(PICTURE, np.arange(PATCHES).reshape(SIDE, SIDE))
VIEWS = [[VIEW]]


def answer(text: str = "A red square.", *, keeps: Sequence[int] = (130, 20), first: int = 1) -> Scores:
    """One whose stages, from number ``first`` on, keep so many tokens."""
    stages = []
    for number, (came, count) in enumerate(pairwise((PATCHES, *keeps)), first):
        scores = RANDOM.lognormal(size=came).astype(np.float32)
        stages.append(StageScores(number, scores, np.sort(np.argsort(-scores)[:count])))
    result = Result(text, (), "stop", (), (), 0, Timings(0.0, 0.0, (), 0.0))
    return Scores(tuple(stages), result)


def replaced(scores: Scores, by: Scores, count: int) -> Scores:
    """With the first ``count`` stages of another answer."""
    return replace(scores, stages=(*by.stages[:count], *scores.stages[count:]))


def centres(image: Image.Image) -> np.ndarray:
    """Colour in the middle of each patch ``[P, 3]``."""
    cell = image.width // SIDE
    return np.asarray(image)[cell // 2 : image.width : cell, cell // 2 :: cell].reshape(-1, 3).astype(int)


def is_grey(colours: np.ndarray) -> np.ndarray:
    return np.ptp(colours, axis=-1) == 0


def test_exactly_the_dropped_patches_are_dark() -> None:
    kept = np.sort(RANDOM.choice(PATCHES, 50, replace=False))
    found = centres(draw_kept(VIEW, kept))
    assert np.flatnonzero(~is_grey(found)).tolist() == kept.tolist()
    assert np.abs(found[kept] - COLOURS[kept]).max() <= 1
    assert np.delete(found, kept, axis=0).max() < 0.3 * COLOURS.max()


def test_a_dark_picture_shows_what_was_kept_by_its_edges() -> None:
    drawn = np.asarray(draw_kept(View(np.zeros_like(PICTURE), VIEW.tokens), np.array([SIDE + 1])))
    rows, columns = np.nonzero(drawn[..., 0] == 255)
    cell = drawn.shape[0] // SIDE
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (cell, 2 * cell - 1) * 2


@pytest.mark.parametrize(
    ("keeps", "first", "titles"),
    [
        ((130, 20), 1, ["1 scores: 144 patches", "1: 130 of 144", "2 scores: 130 tokens", "2: 20 of 130"]),
        ((130, 60, 9), 1, [
            "1 scores: 144 patches", "1: 130 of 144",
            "2 scores: 130 tokens", "2: 60 of 130",
            "3 scores: 60 tokens", "3: 9 of 60",
        ]),
        ((16,), 1, ["1 scores: 144 patches", "1: 16 of 144"]),
        ((50, 5), 2, ["2 scores: 144 tokens", "2: 50 of 144", "3 scores: 50 tokens", "3: 5 of 50"]),
    ],
    ids=["STAR", "three stages", "before the decoder alone", "inside it alone"],
)  # fmt: skip
def test_every_panel_shows_its_stage(keeps: tuple[int, ...], first: int, titles: list[str]) -> None:
    scores = answer(keeps=keeps, first=first)
    picture, *panels = stage_panels(VIEWS, scores)
    assert [panel.title for panel in panels] == [f"stage {title}" for title in titles]
    assert not is_grey(centres(picture.image)).any()
    side, left = picture.image.width, np.arange(PATCHES)
    for stage, heat, kept in zip(scores.stages, panels[::2], panels[1::2], strict=True):
        blank = (centres(heat.image.crop((0, 0, side, side))) == figure.BLANK).all(axis=1)
        assert np.flatnonzero(~blank).tolist() == left.tolist()
        left = left[stage.kept]
        assert np.flatnonzero(~is_grey(centres(kept.image))).tolist() == left.tolist()


def test_a_higher_score_is_lighter() -> None:
    scores = np.geomspace(0.001, 1, PATCHES).astype(np.float32)
    order = RANDOM.permutation(PATCHES)
    drawn = heat_map([[View(np.full_like(PICTURE, 99), VIEW.tokens)]], scores[order])
    light = np.asarray(drawn.crop((0, 0, drawn.width, drawn.width)).convert("L"), int)
    cell = drawn.width // SIDE
    found = light[cell // 2 :: cell, cell // 2 :: cell].ravel()
    assert (np.diff(found[np.argsort(order)]) >= 0).all()
    assert np.ptp(found) > 100


def test_rounding_errors_are_no_pattern() -> None:
    scores = (1 + 1e-6 * RANDOM.standard_normal(PATCHES)).astype(np.float32)
    drawn = heat_map([[View(np.full_like(PICTURE, 99), VIEW.tokens)]], scores)
    assert np.ptp(centres(drawn.crop((0, 0, drawn.width, drawn.width))), axis=0).max() <= 1


@pytest.mark.parametrize("shape", [(2, 2), (16, 16), (24, 24), (27, 81), (81, 5)])
def test_any_grid_fits(shape: tuple[int, int]) -> None:
    size = draw_kept(View(PICTURE, np.arange(shape[0] * shape[1]).reshape(shape)), np.arange(2)).size
    assert size[0] * shape[0] == size[1] * shape[1]
    assert 300 < max(size) <= max(figure.PANEL_SIZE, 8 * max(shape))
    assert min(size) >= 8 * min(shape)


def test_one_row_per_budget() -> None:
    one, two = (
        draw_sheet(VIEWS, "What?", [answer(keeps=(130, k)) for k in keeps]) for keeps in ((20,), (20, 5))
    )
    assert two.size == (one.width, 2 * one.height)


@pytest.mark.parametrize("text", ["many short words " * 40, "x" * 700, "é ü 日本 \n\n\t", ""])
def test_text_is_whole_and_inside(text: str) -> None:
    font = ImageFont.load_default(24)
    lines = wrap(text, font, 500)
    assert max(font.getlength(line) for line in lines) <= 500
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    sheet = np.asarray(draw_sheet(VIEWS, "What?", [answer(text)]))
    for border in (sheet[:8], sheet[-8:], sheet[:, :8], sheet[:, -8:]):
        assert (border == figure.PAPER).all()


class Page(HTMLParser):
    """The text of a page, its elements and what they load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.links = "", [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_prompt_and_answer() -> None:
    prompt, text = "<script>alert(1)</script> & {{ 7 * 7 }}", '"><img src=x onerror=alert(2)>'
    first = answer(text)
    page = render_page(VIEWS, prompt, [first, replaced(answer("second", keeps=(130, 5)), first, 1)])
    found = Page(page)
    assert "script" not in found.tags
    assert found.tags.count("img") == 4 + 2
    assert prompt in found.text
    assert text in found.text
    assert "stage 2: 20 of 130" in found.text
    assert "stage 2: 5 of 130" in found.text
    assert all(link.startswith("data:image/png;base64,") for link in found.links)


@pytest.mark.parametrize(("same", "images"), [(0, 2 + 2 * 5), (1, 4 + 2 * 3), (2, 6 + 2 * 1)])
def test_a_page_shares_the_stages_that_kept_the_same(same: int, images: int) -> None:
    """The picture and the next scores as well, which no later budget changes."""
    one, other = answer(keeps=(130, 60, 9)), answer(keeps=(130, 60, 5))
    page = Page(render_page(VIEWS, "What?", [one, replaced(other, one, same)]))
    assert page.tags.count("img") == images
