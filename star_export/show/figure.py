"""What a schedule kept of a picture, drawn: arrays in, pictures out.

Panels show the pictures as the model sees them, what each stage left of them,
and the scores behind that as heat maps: of each picture one view, or two side
by side where it is cut into tiles. Pillow is all it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from star_export.arrays import Float32
from star_export.engines.session import Int64
from star_export.preprocessing.views import Pixels, View, Views
from star_export.show.scores import Scores

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

#: Longer side of a view in pixels, or a little less: a cell is a whole number of them.
PANEL_SIZE = 384
#: Pixels along a cell at least: a view of many cells is larger, so that edges leave something to see.
LEAST_CELL = 8
#: Dropped cells keep this share of their light, and no colour.
DIMMED = 0.25
#: Share of a heat map's colour that the picture does not shine through.
OPACITY = 0.75
#: Colours from the lowest score to the highest, ever lighter, so that grey copies can be read too.
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
#: Places of a heat map that have no score; background; text; labels.
BLANK, PAPER, INK, PALE = (222, 222, 222), (255, 255, 255), (32, 32, 32), (120, 120, 120)

_GAP, _JOINT, _TEXT, _SMALL, _TEXT_WIDTH = 24, 8, 24, 20, 1300
_BAR_GAP, _BAR_HEIGHT = 8, 12


@dataclass(frozen=True)
class Panel:
    """One picture of the figure with its title."""

    title: str
    image: Image.Image


@dataclass(frozen=True)
class PanelRow:
    """Panels side by side, and below them paragraphs by their labels."""

    panels: Sequence[Panel]
    text: Sequence[tuple[str, str]]


def stage_panels(views: Views, scores: Scores) -> tuple[Panel, ...]:
    """The pictures, then of each stage the scores and what it left.

    Args:
        views: Of the request's pictures.
        scores: Of its visual tokens.
    """
    panels = [Panel(_picture_title(views), _joined([[_enlarged(view) for view in row] for row in views]))]
    left = np.arange(len(scores.stages[0].scores))
    drawn = np.empty(len(left), np.float32)
    for stage in scores.stages:
        name, came = f"stage {stage.number}", len(left)
        drawn[:] = np.nan
        drawn[left] = stage.scores
        ranked = np.count_nonzero(~np.isnan(drawn))
        kind = "patches" if stage.number == 1 else "tokens"
        panels.append(Panel(f"{name} scores: {ranked} {kind}", heat_map(views, drawn)))
        left = left[stage.kept]
        panels.append(Panel(f"{name}: {len(left)} of {came}", overlay(views, left)))
    return tuple(panels)


def overlay(views: Views, kept: Int64) -> Image.Image:
    """All views, each as :func:`draw_kept` draws it."""
    return _joined([[draw_kept(view, kept) for view in row] for row in views])


def heat_map(views: Views, scores: Float32) -> Image.Image:
    """All views, each as :func:`draw_scores` draws it, above the scale of their colours.

    Colours go by the logarithm of the score, from the lowest that is drawn to the highest.

    Args:
        views: Of the request's pictures.
        scores: Of each visual token, not negative; NaN for none.
    """
    shown = scores[np.concatenate([view.tokens[view.tokens >= 0] for row in views for view in row])]
    shown = shown[~np.isnan(shown)]
    mean = float(shown.mean()) or 1.0
    low, high = float(shown.min()) / mean, float(shown.max()) / mean
    heat = _heat(scores.astype(np.float64) / mean, low, high)
    panel = _joined([[draw_scores(view, heat) for view in row] for row in views])
    return _with_scale(panel, f"{low:.2g} x mean", f"{high:.2g} x mean")


def draw_kept(view: View, kept: Int64) -> Image.Image:
    """A view with every cell dark and grey whose token is not kept, and a white edge between the two.

    Args:
        view: One of a picture's.
        kept: Visual tokens whose cells stay bright.
    """
    bright = np.asarray(_enlarged(view))
    mask = _cells(np.isin(view.tokens, kept))
    drawn = np.where(mask[..., None], bright, (_grey(bright) * DIMMED).astype(np.uint8))  # [H, W, 3]
    drawn[mask & _beside(~mask)] = PAPER
    return Image.fromarray(drawn)


def draw_scores(view: View, heat: npt.NDArray[np.float64]) -> Image.Image:
    """A heat map over a view; cells without a score are blank.

    Args:
        view: One of a picture's.
        heat: Place of each visual token on the scale of colours, 0 to 1; NaN without a score.
    """
    places = np.where(view.tokens < 0, np.nan, heat[view.tokens])  # [rows, columns]
    scored, colours = ~np.isnan(places), np.full((*places.shape, 3), BLANK, np.float64)
    colours[scored] = _colour(places[scored])
    opacity = _cells(np.where(scored, OPACITY, 1.0))[..., None]
    drawn = opacity * _cells(colours) + (1.0 - opacity) * _grey(np.asarray(_enlarged(view)))
    return Image.fromarray(drawn.astype(np.uint8))


def draw_sheet(views: Views, prompt: str, answers: Sequence[Scores]) -> Image.Image:
    """The whole figure: a row of panels per budget, each above its answer.

    Args:
        views: Of the request's pictures.
        prompt: The question.
        answers: One per budget.
    """
    return compose(
        [
            PanelRow(
                stage_panels(views, answer),
                (("prompt", prompt), ("answer", answer.result.text)),
            )
            for answer in answers
        ]
    )


def compose(rows: Sequence[PanelRow]) -> Image.Image:
    """All rows on one sheet, one below the other."""
    width = _GAP + max(sum(panel.image.width + _GAP for panel in row.panels) for row in rows)
    blocks = [_block(row, width) for row in rows]
    sheet, top = Image.new("RGB", (width, sum(block.height for block in blocks)), PAPER), 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Break a text into lines of at most ``width`` pixels, between words where that is possible."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


def _block(row: PanelRow, width: int) -> Image.Image:
    """One row: titles, panels, text."""
    small, font = ImageFont.load_default(_SMALL), ImageFont.load_default(_TEXT)
    indent = _GAP + max((font.getlength(label) for label, _ in row.text), default=0) + _GAP
    room = min(width - _GAP, _TEXT_WIDTH) - indent
    paragraphs = [(label, wrap(text, font, room)) for label, text in row.text]
    line, panel_top = _TEXT * 3 // 2, _GAP + _SMALL * 3 // 2
    text_top = panel_top + max(panel.image.height for panel in row.panels) + _GAP
    lines = sum(len(found) for _, found in paragraphs)
    sheet = Image.new("RGB", (width, text_top + lines * line + _GAP), PAPER)
    draw, left, top = ImageDraw.Draw(sheet), _GAP, text_top
    for panel in row.panels:
        draw.text((left, _GAP), panel.title, INK, small)
        sheet.paste(panel.image, (left, panel_top))
        left += panel.image.width + _GAP
    for label, found in paragraphs:
        draw.text((_GAP, top), label, PALE, font)
        for text in found:
            draw.text((indent, top), text, INK, font)
            top += line
    return sheet


def _picture_title(views: Views) -> str:
    if len(views) > 1:
        return f"{len(views)} pictures"
    sizes = [f"{width} x {height}" for height, width, _ in (view.pixels.shape for view in views[0])]
    return f"picture: {' and '.join(sizes)} px"


def _joined(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of images, one below the other."""
    width = max(sum(image.width + _JOINT for image in row) for row in rows) - _JOINT
    heights = [max(image.height for image in row) + _JOINT for row in rows]
    sheet, top = Image.new("RGB", (width, sum(heights) - _JOINT), PAPER), 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width + _JOINT
        top += height
    return sheet


def _enlarged(view: View) -> Image.Image:
    """A view at its size in a panel ``[H, W, 3]``."""
    rows, columns = (count * _cell(view.tokens.shape) for count in view.tokens.shape)
    return Image.fromarray(view.pixels).resize((columns, rows))


def _cell(shape: tuple[int, ...]) -> int:
    """Side of a cell in a view of so many rows and columns."""
    return max(LEAST_CELL, PANEL_SIZE // max(shape[:2]))


def _cells(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One value, or one colour, per cell ``[rows, columns, ...]`` as pixels ``[H, W, ...]``."""
    cell = _cell(values.shape)
    return values.repeat(cell, axis=0).repeat(cell, axis=1)


def _grey(pixels: Pixels) -> npt.NDArray[np.float64]:
    """Light of each pixel ``[H, W, 1]``."""
    return np.asarray(Image.fromarray(pixels).convert("L"), np.float64)[..., None]


def _beside(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels with a neighbour above, below, left or right that is set."""
    wide = np.pad(mask, 1)
    return wide[2:, 1:-1] | wide[:-2, 1:-1] | wide[1:-1, 2:] | wide[1:-1, :-2]


def _heat(ratio: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Scores as multiples of their mean to places on the colour scale: 0 of ``low`` to 1 of ``high``.

    The scale spans 10 % both ways at least: rounding errors of uniform scores are no pattern.
    """
    first, last = min(np.log(max(low, 1e-3)), -0.1), max(np.log(max(high, 1e-3)), 0.1)
    return (np.log(np.maximum(ratio, 1e-3)) - first) / (last - first)  # type: ignore[no-any-return]


def _colour(heat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Colours ``[N, 3]`` of places on the scale ``[N]``."""
    anchors = np.linspace(0.0, 1.0, len(COLOURS))
    return np.stack([np.interp(heat, anchors, channel) for channel in np.array(COLOURS).T], axis=-1)


def _with_scale(panel: Image.Image, low: str, high: str) -> Image.Image:
    """A panel with the scale of its colours below."""
    font, width = ImageFont.load_default(_SMALL), panel.width
    scale = _colour(np.linspace(0.0, 1.0, width)).astype(np.uint8)[None].repeat(_BAR_HEIGHT, axis=0)
    sheet = Image.new("RGB", (width, panel.height + 2 * _BAR_GAP + _BAR_HEIGHT + _SMALL), PAPER)
    sheet.paste(panel)
    sheet.paste(Image.fromarray(scale), (0, panel.height + _BAR_GAP))
    draw, top = ImageDraw.Draw(sheet), panel.height + _BAR_GAP + _BAR_HEIGHT + 2
    draw.text((0, top), low, PALE, font)
    draw.text((width, top), high, PALE, font, anchor="ra")
    return sheet
