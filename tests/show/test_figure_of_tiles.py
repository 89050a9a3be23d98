"""The figure of several pictures that are cut into tiles: read back from its pixels."""

import numpy as np
from PIL import Image

from star_export.answer.generation import Result, Timings
from star_export.preprocessing.views import View
from star_export.show import figure
from star_export.show.figure import heat_map, overlay, stage_panels
from star_export.show.scores import Scores, StageScores

RANDOM = np.random.default_rng(5)
#: Tokens of each picture: its first tile's 3x3, and rows of its grid that a newline ends.
GRIDS = [(2, 4), (5, 3)]
TOKENS = sum(9 + rows * (columns + 1) for rows, columns in GRIDS)


def make_views() -> list[list[View]]:
    """Two pictures, cut; every cell of one colour, none of them grey."""
    views, first = [], 0
    for rows, columns in GRIDS:
        whole = first + np.arange(9).reshape(3, 3)
        grid = first + 9 + np.arange(rows * (columns + 1)).reshape(rows, -1)[:, :-1]
        views.append([View(coloured(tokens.shape), tokens) for tokens in (whole, grid)])
        first += 9 + rows * (columns + 1)
    return views


def coloured(shape: tuple[int, ...]) -> np.ndarray:
    colours = RANDOM.integers(0, 100, (*shape, 3), dtype=np.uint8) + np.array([150, 0, 0], np.uint8)
    return colours.repeat(20, axis=0).repeat(20, axis=1)


VIEWS = make_views()
CELLS = np.sort(np.concatenate([view.tokens.ravel() for row in VIEWS for view in row]))
NEWLINES = np.setdiff1d(np.arange(TOKENS), CELLS)


def centres(image: Image.Image) -> np.ndarray:
    """Colour in the middle of the cell of each token ``[tokens, 3]``; -1 where it has none.

    Views stand in the panel as pictures below each other, and those of a picture side by side.
    """
    pixels, found = np.asarray(image).astype(int), np.full((TOKENS, 3), -1)
    top = 0
    for row in VIEWS:
        left = bottom = 0
        for view in row:
            rows, columns = view.tokens.shape
            cell = figure.PANEL_SIZE // max(rows, columns)
            area = pixels[top : top + rows * cell, left : left + columns * cell]
            found[view.tokens] = area[cell // 2 :: cell, cell // 2 :: cell]
            left += columns * cell + 8
            bottom = max(bottom, rows * cell)
        top += bottom + 8
    return found


def coloured_tokens(image: Image.Image) -> list[int]:
    return np.flatnonzero(np.ptp(centres(image), axis=1)).tolist()


def answer() -> Scores:
    """An answer for which stage 1 kept all newlines, and stage 2 some of them."""
    first = RANDOM.lognormal(size=TOKENS).astype(np.float32)
    first[NEWLINES] = np.nan
    entered = np.union1d(NEWLINES, RANDOM.choice(CELLS, 25, replace=False))
    second = StageScores(2, RANDOM.lognormal(size=len(entered)).astype(np.float32), np.arange(3, 15))
    timings = Timings(0.0, 0.0, (), 0.0)
    result = Result("", (), "stop", tuple(entered.tolist()), tuple(range(3, 15)), 0, timings)
    return Scores((StageScores(1, first, entered), second), result)


def test_exactly_the_dropped_cells_are_dark() -> None:
    kept = np.sort(RANDOM.choice(TOKENS, 30, replace=False))
    assert coloured_tokens(overlay(VIEWS, kept)) == np.intersect1d(kept, CELLS).tolist()


def test_every_panel_shows_its_stage() -> None:
    scores = answer()
    entered = scores.stages[0].kept
    picture, heat1, kept1, heat2, kept2 = stage_panels(VIEWS, scores)
    assert picture.title == "2 pictures"
    assert (heat1.title, kept1.title) == ("stage 1 scores: 41 patches", "stage 1: 32 of 48")
    assert (heat2.title, kept2.title) == ("stage 2 scores: 32 tokens", "stage 2: 12 of 32")
    assert coloured_tokens(picture.image) == CELLS.tolist()
    assert coloured_tokens(kept1.image) == np.setdiff1d(entered, NEWLINES).tolist()
    assert coloured_tokens(kept2.image) == np.setdiff1d(entered[3:15], NEWLINES).tolist()
    assert coloured_tokens(heat1.image) == CELLS.tolist()  # blank is grey
    assert coloured_tokens(heat2.image) == np.setdiff1d(entered, NEWLINES).tolist()


def test_the_title_has_both_sizes_of_a_cut_picture() -> None:
    assert stage_panels(VIEWS[:1], answer())[0].title == "picture: 60 x 60 and 80 x 40 px"


def test_all_views_have_one_scale() -> None:
    grey = [[View(np.full_like(view.pixels, 99), view.tokens) for view in row] for row in VIEWS]
    scores = np.geomspace(0.001, 1, TOKENS)[RANDOM.permutation(TOKENS)].astype(np.float32)
    scores[[2, 12, 30]] = 0.5  # cells of three views
    scores[NEWLINES] = 1e6  # not drawn: takes no part of the scale
    colours = centres(heat_map(grey, scores))
    assert (colours[[2, 12, 30]] == colours[2]).all()
    light = colours[CELLS] @ [0.299, 0.587, 0.114]
    assert (np.diff(light[np.argsort(scores[CELLS])]) >= 0).all()
    assert np.ptp(light) > 100


def test_a_first_patch_without_a_token_is_dark_and_blank() -> None:
    tokens = np.arange(-1, 8).reshape(3, 3)
    view = View(VIEWS[0][0].pixels, tokens)
    kept, heat = overlay([[view]], np.arange(8)), heat_map([[view]], np.ones(8, np.float32))
    corner = np.s_[20:60, 20:60]
    assert np.ptp(np.asarray(kept)[corner], axis=-1).max() == 0
    assert (np.asarray(heat)[corner] == figure.BLANK).all()
    assert np.ptp(np.asarray(kept)[20:60, 148:188], axis=-1).min() > 0
