"""Schedules as users write them: ``128@0,14@14``, and presets that stand for one.

``128@0`` keeps 128 visual tokens of each picture before the decoder, ``14@14`` 14 of the request before the
layer that the paper counts as the 15th (from 0: 14). A share, such as ``90%@0``, follows the pictures' sizes.
"""

import difflib
import math
import re
from dataclasses import dataclass, replace

from star_export.errors import SettingsError, option
from star_export.specs.images import ImageLimits
from star_export.specs.model import ModelSpec
from star_export.specs.pruning import (
    DEFAULT_PRUNE_FRACTION,
    Schedule,
    Stage,
    before_decoder,
    check_keep,
    check_schedule,
    share_of,
    stage1_count,
)
from star_export.specs.scores import SPREAD, TEXT_PEAKS

STAR_PRESET, FAST_PRESET, BALANCED_PRESET = "star", "fast", "balanced"
#: Visual tokens per layer, on average, of the presets that name no number.
DEFAULT_AVERAGE = 64

_FORM = "stages TOKENS@LAYER such as 128@0,14@14, or star, fast or balanced-64"
_STAGE = re.compile(r"(?P<tokens>\d+)@(?P<layer>\d+)|(?P<percent>\d+(\.\d+)?)%@(?P<at>\d+)")
_PRESET = re.compile(rf"(?P<name>{FAST_PRESET}|{BALANCED_PRESET})(-(?P<average>\d+))?")


@dataclass(frozen=True, kw_only=True)
class Place:
    """One stage as it is written.

    Attributes:
        after_layer: Decoder layers before it.
        tokens: Visual tokens that it keeps, or
        share: what part it keeps.
    """

    after_layer: int
    tokens: int = 0
    share: float | None = None

    def __str__(self) -> str:
        kept = self.tokens if self.share is None else f"{100 * self.share:g}%"
        return f"{kept}@{self.after_layer}"


def parse_schedule(text: str, layers: int) -> tuple[Place, ...]:
    """The stages that a text or a preset stands for.

    Args:
        text: The schedule.
        layers: Layers of the decoder.

    Raises:
        SettingsError: If it is neither.
    """
    if preset := _PRESET.fullmatch(text):
        average = int(preset["average"] or DEFAULT_AVERAGE)
        return balanced(average, layers) if preset["name"] == BALANCED_PRESET else (_at_once(average),)
    stages = [_STAGE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(stages):
        near = difflib.get_close_matches(text, (STAR_PRESET, FAST_PRESET, f"{BALANCED_PRESET}-64"), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError(f"{option('schedule', text)} is no schedule; {hint}expected {_FORM}")
    return tuple(_place(stage) for stage in stages if stage)


def _place(stage: re.Match[str]) -> Place:
    if stage["percent"]:
        return Place(after_layer=int(stage["at"]), share=float(stage["percent"]) / 100)
    return Place(after_layer=int(stage["layer"]), tokens=int(stage["tokens"]))


def _at_once(tokens: int) -> Place:
    """``fast``: all pruning before the decoder, whose layers then have one cache length."""
    return Place(after_layer=0, tokens=tokens)


def balanced(average: int, layers: int) -> tuple[Place, ...]:
    """``balanced-T``: twice the average enters the decoder, and the last layers make up for it.

    Of 32 layers and T = 64 it is ``128@0,14@14``: 14 layers of 128 and 18 of 14 tokens are 64 on average.
    """
    layer = max(1, math.floor(DEFAULT_PRUNE_FRACTION * layers))
    late = (average * layers - 2 * average * layer) / max(1, layers - layer)
    return (
        Place(after_layer=0, tokens=2 * average),
        Place(after_layer=layer, tokens=max(1, math.floor(late + 0.5))),
    )


def resolve_schedule(
    model: ModelSpec,
    images: ImageLimits,
    text: str,
    *,
    stage1: str | None = None,
    stage2: str | None = None,
    max_keep: int | None = None,
) -> Schedule:
    """The stages of a schedule, checked.

    Args:
        model: The model to prune.
        images: The pictures that a request may hold.
        text: As :func:`parse_schedule` takes it.
        stage1: Score of the stage before the decoder.
        stage2: Score of those inside.
        max_keep: Largest budget of the last stage that there is room for.

    Raises:
        SettingsError: If stages contradict each other, the model or the pictures.
    """
    places = parse_schedule(text, model.text.num_layers)
    _check_places(places, model, text)
    _check_scores(places, text, stage1, stage2)
    try:
        schedule = tuple(
            _stage(place, model, images, stage1 or SPREAD, stage2 or TEXT_PEAKS) for place in places
        )
        schedule = _with_room(schedule, max_keep)
        check_schedule(schedule, model, images)
    except SettingsError as error:
        raise SettingsError(f"{option('schedule', text)}: {error.marked}") from error
    return schedule


def _check_places(places: tuple[Place, ...], model: ModelSpec, text: str) -> None:
    """Refuse stages that are out of order, before sizes are worked out."""
    layers, before = model.text.num_layers, None
    for place in places:
        if place.share is not None and not 0 < place.share < 1:
            raise SettingsError(f"{option('schedule', text)}: {place} is no share between 0 and 100 %")
        if place.share is None and place.tokens < 1:
            raise SettingsError(f"{option('schedule', text)}: {place} keeps nothing; give at least 1 token")
        if place.after_layer >= layers:
            raise SettingsError(
                f"{option('schedule', text)}: {place} is outside; this decoder's {layers} layers take "
                f"stages at 0 (before the decoder) to {layers - 1}"
            )
        if before is not None and place.after_layer <= before.after_layer:
            raise SettingsError(
                f"{option('schedule', text)}: {place} comes after {before}; give stages in order of layers"
            )
        before = place


def _check_scores(places: tuple[Place, ...], text: str, stage1: str | None, stage2: str | None) -> None:
    """Refuse a score that no stage has a use for."""
    before = places[0].after_layer == 0
    for name, score, used, where in (
        ("stage1", stage1, before, "before"),
        ("stage2", stage2, len(places) > before, "inside"),
    ):
        if score is not None and not used:
            raise SettingsError(
                f"{option(name, score)} has no meaning with {option('schedule', text)}, which has no stage "
                f"{where} the decoder; leave one of them out"
            )


def _stage(place: Place, model: ModelSpec, images: ImageLimits, stage1: str, stage2: str) -> Stage:
    if place.after_layer == 0:
        return _first(place, model, images, stage1)
    tokens = place.tokens if place.share is None else share_of(place.share, images.max_image_tokens)
    return Stage(
        after_layer=place.after_layer, score=stage2, tokens=tokens, max_tokens=tokens, share=place.share
    )


def _first(place: Place, model: ModelSpec, images: ImageLimits, score: str) -> Stage:
    """The stage before the decoder; a share of a picture of the only size is a number."""
    tokens, share = place.tokens, place.share
    if share is not None and model.tiling is None:
        tokens, share = stage1_count(patches=model.vision.tile_tokens, drop_ratio=1 - share), None
    if share is None and model.tiling is None and not tokens < model.vision.tile_tokens:
        raise SettingsError(
            f"{place} is not below the {model.vision.tile_tokens} visual tokens of a picture; keep fewer"
        )
    return before_decoder(model, images, score, tokens=max(1, tokens), share=share)


def _with_room(schedule: Schedule, max_keep: int | None) -> Schedule:
    """The same, with room for larger budgets of the last stage."""
    *before, last = schedule
    if max_keep is None:
        return schedule
    if last.after_layer == 0:
        raise SettingsError(
            f"{option('max_keep', max_keep)} is about a stage inside the decoder; a stage before it keeps at "
            "most what the schedule says"
        )
    roomy = (*before, replace(last, max_tokens=max_keep))
    check_keep(roomy, max_keep, name="max_keep")
    return roomy
