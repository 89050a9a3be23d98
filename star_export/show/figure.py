"""What STAR kept of a picture, drawn: arrays in, pictures out.

Panels show the picture as the model sees it, what each stage left of it, and
the scores behind that as heat maps. Pillow is all it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from star_export.arrays import Float32
from star_export.engines.session import Int64
from star_export.show.scores import Scores

Pixels = npt.NDArray[np.uint8]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

#: Side of a panel in pixels, or a little less: a patch is a whole number of them.
PANEL_SIZE = 384
#: Dropped patches keep this share of their light, and no colour.
DIMMED = 0.25
#: Share of a heat map's colour that the picture does not shine through.
OPACITY = 0.75
#: Colours from the lowest score to the highest, ever lighter, so that grey copies can be read too.
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
#: Places of a heat map that have no score; background; text; labels.
BLANK, PAPER, INK, PALE = (222, 222, 222), (255, 255, 255), (32, 32, 32), (120, 120, 120)

_GAP, _TEXT, _SMALL, _TEXT_WIDTH = 24, 24, 20, 1300
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


def stage_panels(picture: Pixels, scores: Scores) -> tuple[Panel, ...]:
    """What does not depend on the budget of stage 2: the picture, stage 1, stage 2's scores.

    Args:
        picture: What the model sees, ``[H, W, 3]``.
        scores: Of as many patches as make a square.
    """
    first, second = scores.stage1, scores.stage2
    patches = len(first.scores)
    height, width = picture.shape[:2]
    return (
        Panel(f"picture: {width} x {height} px", draw_kept(picture, np.arange(patches), patches)),
        Panel(
            f"stage 1 scores: {patches} patches",
            draw_scores(picture, first.scores, np.arange(patches), patches),
        ),
        Panel(f"stage 1: {len(first.kept)} of {patches}", draw_kept(picture, first.kept, patches)),
        Panel(
            f"stage 2 scores: {len(second.scores)} tokens",
            draw_scores(picture, second.scores, first.kept, patches),
        ),
    )


def budget_panel(picture: Pixels, scores: Scores) -> Panel:
    """What stage 2 left of the picture ``[H, W, 3]``."""
    kept = scores.stage1.kept[scores.stage2.kept]
    title = f"stage 2: {len(kept)} of {len(scores.stage2.scores)}"
    return Panel(title, draw_kept(picture, kept, len(scores.stage1.scores)))


def draw_kept(picture: Pixels, kept: Int64, patches: int) -> Image.Image:
    """The picture with every other patch dark and grey, and a white edge between the two.

    Args:
        picture: uint8 ``[H, W, 3]``.
        kept: Patches that stay bright.
        patches: How many there are, a square number; row by row.
    """
    bright = _enlarged(picture, patches)
    mask = _cells(np.isin(np.arange(patches), kept), patches)
    drawn = np.where(mask[..., None], bright, (_grey(bright) * DIMMED).astype(np.uint8))  # [N, N, 3]
    drawn[mask & _beside(~mask)] = PAPER
    return Image.fromarray(drawn)


def draw_scores(picture: Pixels, scores: Float32, places: Int64, patches: int) -> Image.Image:
    """A heat map over the picture, its colour scale below; patches without a score are blank.

    Colours go by the logarithm of the score, from the lowest to the highest.

    Args:
        picture: uint8 ``[H, W, 3]``.
        scores: ``[N]``, not negative.
        places: The patch of each ``[N]``.
        patches: How many there are, a square number; row by row.
    """
    ratio = scores.astype(np.float64) / (scores.mean() or 1.0)
    scored, colours = np.zeros(patches), np.full((patches, 3), BLANK, np.float64)
    scored[places], colours[places] = 1.0, _colour(_heat(ratio))
    opacity = _cells(np.where(scored, OPACITY, 1.0), patches)[..., None]
    grey = _grey(_enlarged(picture, patches))
    drawn = opacity * _cells(colours, patches) + (1.0 - opacity) * grey
    scale = f"{ratio.min():.2g} x mean", f"{ratio.max():.2g} x mean"
    return _with_scale(Image.fromarray(drawn.astype(np.uint8)), *scale)


def draw_sheet(picture: Pixels, prompt: str, answers: Sequence[Scores]) -> Image.Image:
    """The whole figure: a row of panels per budget, each above its answer.

    Args:
        picture: What the model sees, ``[H, W, 3]``.
        prompt: The question.
        answers: One per budget.
    """
    return compose(
        [
            PanelRow(
                (*stage_panels(picture, answer), budget_panel(picture, answer)),
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


def _enlarged(picture: Pixels, patches: int) -> Pixels:
    """The picture at a panel's size ``[N, N, 3]``, without what is no whole patch."""
    side = isqrt(patches)
    height, width = (length // side * side for length in picture.shape[:2])
    size = side * _cell(patches)
    return np.asarray(Image.fromarray(picture[:height, :width]).resize((size, size)))


def _cell(patches: int) -> int:
    """Side of a patch in a panel."""
    return max(1, PANEL_SIZE // isqrt(patches))


def _cells(values: npt.NDArray[Any], patches: int) -> npt.NDArray[Any]:
    """One value, or one colour, per patch ``[P, ...]`` as a panel ``[N, N, ...]``."""
    side = isqrt(patches)
    square = values.reshape(side, side, *values.shape[1:])
    return square.repeat(_cell(patches), axis=0).repeat(_cell(patches), axis=1)


def _grey(pixels: Pixels) -> npt.NDArray[np.float64]:
    """Light of each pixel ``[N, N, 1]``."""
    return np.asarray(Image.fromarray(pixels).convert("L"), np.float64)[..., None]


def _beside(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels with a neighbour above, below, left or right that is set."""
    wide = np.pad(mask, 1)
    return wide[2:, 1:-1] | wide[:-2, 1:-1] | wide[1:-1, 2:] | wide[1:-1, :-2]


def _heat(ratio: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores as multiples of their mean to places on the colour scale, 0 to 1.

    The scale spans 10 % both ways at least: rounding errors of uniform scores are no pattern.
    """
    logs = np.log(np.maximum(ratio, 1e-3))
    low, high = min(logs.min(), -0.1), max(logs.max(), 0.1)
    return (logs - low) / (high - low)  # type: ignore[no-any-return]


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
