"""Which visual tokens stay, and where: schedules of pruning stages, and all arithmetic of their budgets.

STAR (arXiv 2505.12359, section 3) is one schedule: ``received`` before the decoder, ``text`` inside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from msgspec import Meta

from star_export.errors import SettingsError, option
from star_export.specs.images import ImageLimits, largest_request
from star_export.specs.model import ModelSpec
from star_export.specs.scores import RECEIVED, TEXT, check_score
from star_export.specs.values import Count

#: Visual tokens left of a request: of a picture that is one tile, of one that is cut into tiles.
DEFAULT_KEEP, DEFAULT_TILED_KEEP = 64, 320
DEFAULT_DROP_RATIO = 0.1
DEFAULT_PRUNE_FRACTION = 0.4375  # 14 of LLaVA-1.5-7B's 32 layers

#: Budgets that a request asks for: of the last stage, the others as they were built; or of every stage.
Keep = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One place where visual tokens are dropped.

    Attributes:
        after_layer: Decoder layers that run before it; 0 is in the vision graph, before the projector.
        score: Name of the score that ranks the tokens; see `star_export.specs.scores`.
        tokens: Visual tokens that it keeps unless asked otherwise: before the decoder of one picture, and
            at most, inside it of the request.
        max_tokens: The most that it can keep of a request: the KV caches behind it have room for them.
        share: What part it keeps, where that differs from request to request; ``tokens`` is then what it
            keeps of the largest. Before the decoder a part of each picture's patches, inside it of all
            visual tokens that the request has before any is pruned.
        mass: Of the tokens that it may keep, it keeps the fewest whose scores are this part of the sum over
            all that came to it. Only the last stage of a schedule can.
    """

    after_layer: Annotated[int, Meta(ge=0, le=1023)]
    score: Annotated[str, Meta(pattern="^[a-z][a-z0-9-]{0,31}$")]
    tokens: Count
    max_tokens: Count
    share: Annotated[float, Meta(gt=0, le=1)] | None = None
    mass: Annotated[float, Meta(gt=0, lt=1)] | None = None  # absent before budgets could adapt


#: Stages in the order in which they run; none at all leaves every token where it is.
Schedule = tuple[Stage, ...]


def spelled_keep(keep: Keep | None) -> str:
    """Budgets as ``--keep`` takes them."""
    return ",".join(map(str, keep)) if isinstance(keep, tuple) else str(keep)


def stage_number(schedule: Sequence[Stage], index: int) -> int:
    """What users and tensor names call a stage: 1 is the one before the decoder, 2 the first inside."""
    return index + (1 if schedule[0].after_layer == 0 else 2)


def stage1_count(*, patches: int, drop_ratio: float) -> int:
    """``N1 = floor((1-R)*P + 0.5)``: patches kept by STAR's stage 1.

    Raises:
        SettingsError: If ``drop_ratio`` is not in [0, 1).
    """
    if not 0.0 <= drop_ratio < 1.0:
        raise SettingsError(
            f"{option('drop_ratio')} must be at least 0 and below 1, got {drop_ratio:g}; "
            f"the paper's value is {DEFAULT_DROP_RATIO}"
        )
    return math.floor((1.0 - drop_ratio) * patches + 0.5)


def entering_tokens(stage: Stage, tokens: int, newlines: int) -> int:
    """Visual tokens of one picture that the stage before the decoder keeps.

    Args:
        stage: That stage.
        tokens: The picture's visual tokens.
        newlines: Those of them that end a row: of a share all stay, of a number they go first.
    """
    if stage.share is None:
        return min(stage.tokens, tokens)
    # At least one is dropped, so that no size of the graph is ever 0.
    return min(math.floor(stage.share * (tokens - newlines) + 0.5) + newlines, tokens - 1)


def default_prune_layer(num_layers: int) -> int:
    """``K`` for a decoder of ``num_layers``: 14 of 32, in proportion for other depths."""
    return max(1, math.floor(DEFAULT_PRUNE_FRACTION * num_layers + 0.5))


def resolve_star(
    model: ModelSpec,
    images: ImageLimits,
    *,
    keep: int | None = None,
    keep_ratio: float | None = None,
    drop_ratio: float = DEFAULT_DROP_RATIO,
    prune_layer: int | None = None,
    max_keep: int | None = None,
    stage1: str = RECEIVED,
    stage2: str = TEXT,
) -> Schedule:
    """Turn the user's options into STAR's schedule, checked: two stages.

    Args:
        model: The model to prune.
        images: The pictures that a request may hold.
        keep: Visual tokens of a request left after stage 2; when neither form is given, 64, or 320 where
            pictures are cut into tiles.
        keep_ratio: The same as a share of all visual tokens, in (0, 1).
        drop_ratio: Share of patches dropped by stage 1.
        prune_layer: ``K``; by default 0.4375 of the decoder's layers.
        max_keep: Largest budget the caches get room for; ``keep`` by default.
        stage1: Score before the decoder; with another than STAR's it is STAR no more.
        stage2: Score inside it.

    Raises:
        SettingsError: If a value is out of range or the two stages contradict each other.
    """
    wanted = _wanted(model, images, keep, keep_ratio)
    ceiling = wanted if max_keep is None else max_keep
    schedule = (
        _stage1(model, images, drop_ratio, stage1),
        Stage(
            after_layer=_prune_layer(model.text.num_layers, prune_layer),
            score=stage2,
            tokens=wanted,
            max_tokens=ceiling,
            share=keep_ratio,
        ),
    )
    for stage in schedule:
        check_score(stage.after_layer, stage.score, model)
    check_keep(schedule, ceiling, name="max_keep" if max_keep is not None else "keep")
    check_keep(schedule, wanted)
    return schedule


def _stage1(model: ModelSpec, images: ImageLimits, drop_ratio: float, score: str) -> Stage:
    patches = model.vision.tile_tokens
    kept = stage1_count(patches=patches, drop_ratio=drop_ratio)
    if kept < 2:
        raise SettingsError(
            f"{option('drop_ratio', f'{drop_ratio:g}')} leaves {kept} of {patches} patches; lower it"
        )
    share = None if model.tiling is None else 1.0 - drop_ratio
    return before_decoder(model, images, score, tokens=kept, share=share)


def before_decoder(
    model: ModelSpec, images: ImageLimits, score: str, *, tokens: int, share: float | None
) -> Stage:
    """The stage before the decoder, which keeps a number of tokens of each picture, or a share."""
    stage = Stage(after_layer=0, score=score, tokens=tokens, max_tokens=tokens, share=share)
    one, most = (_entering(model, limits, stage) for limits in (replace(images, max_images=1), images))
    return replace(stage, tokens=one, max_tokens=most)


def _entering(model: ModelSpec, images: ImageLimits, stage: Stage) -> int:
    """Visual tokens that the stage before the decoder leaves of the largest request."""
    return largest_request(model, images, partial(entering_tokens, stage))


def _wanted(model: ModelSpec, images: ImageLimits, keep: int | None, keep_ratio: float | None) -> int:
    if keep_ratio is None:
        default = DEFAULT_KEEP if model.tiling is None else DEFAULT_TILED_KEEP
        return default if keep is None else keep
    if keep is not None:
        raise SettingsError(f"give either {option('keep')} or {option('keep_ratio')}, not both")
    if not 0.0 < keep_ratio < 1.0:
        raise SettingsError(f"{option('keep_ratio')} must be between 0 and 1, got {keep_ratio:g}")
    return share_of(keep_ratio, images.max_image_tokens)


def share_of(share: float, tokens: int) -> int:
    """A share of some tokens, rounded half up, at least 1."""
    return max(1, math.floor(share * tokens + 0.5))


def _prune_layer(layers: int, given: int | None) -> int:
    layer = default_prune_layer(layers) if given is None else given
    if layers < 2:
        raise SettingsError(f"a decoder of one layer cannot be pruned inside; use {option('prune', False)}")
    if not 1 <= layer < layers:
        raise SettingsError(
            f"{option('prune_layer')} must be from 1 to {layers - 1} for this {layers}-layer decoder, "
            f"got {layer}"
        )
    return layer


def check_keep(schedule: Schedule, keep: Keep, *, name: str = "keep") -> None:
    """Refuse budgets that the method or the bundle's caches cannot serve.

    Raises:
        SettingsError: If a budget is below 1, not below what the stage before keeps, or above ``max_tokens``;
            or if there is not one for each stage.
    """
    if isinstance(keep, int):
        _check_last(schedule, keep, name)
        return
    if len(keep) != len(schedule):
        raise SettingsError(
            f"{option(name, spelled_keep(keep))} has {len(keep)} budgets; give one number for the last "
            f"stage, or {len(schedule)}, one for each"
        )
    asked: Schedule = ()
    for stage, tokens in zip(schedule, keep, strict=True):
        _check_last((*asked, stage), tokens, name)
        most = stage.max_tokens * tokens // stage.tokens
        asked += (replace(stage, tokens=tokens, max_tokens=stage.max_tokens if stage.after_layer else most),)


def _check_last(schedule: Schedule, keep: int, name: str) -> None:
    *before, last = schedule
    if keep < 1:
        raise SettingsError(f"{option(name)} must be at least 1 visual token, got {keep}")
    if before and keep >= (most := _most(before[-1])):
        number, possible = stage_number(schedule, len(before) - 1), min(most - 1, last.max_tokens)
        fewer = f"choose at most {possible} or " if possible else ""
        raise SettingsError(
            f"{option(name, keep)} is not below the {most} tokens that stage {number} keeps; "
            f"{fewer}let that stage keep more"
        )
    most = last.max_tokens if last.after_layer else last.tokens
    if keep > most:
        remedy = "max_keep" if last.after_layer else "schedule"
        raise SettingsError(
            f"{option(name, keep)} is over this bundle's maximum of {most}; "
            f"build it again with {option(remedy, keep if last.after_layer else f'{keep}@0')}"
        )


def with_mass(schedule: Schedule, mass: float | None) -> Schedule:
    """The same, with a last stage that keeps the fewest tokens whose scores are a part of all.

    Raises:
        SettingsError: As :func:`check_mass`.
    """
    if mass is None:
        return schedule
    if not schedule:
        raise SettingsError(
            f"{option('keep_mass')} has no meaning with {option('prune', False)}; leave one of them out"
        )
    adapting = replace(schedule[-1], mass=mass)
    check_mass(adapting, last=True)
    return (*schedule[:-1], adapting)


def check_mass(stage: Stage, *, last: bool) -> None:
    """Refuse a share of the scores' sum where there is no such sum, or more stages follow.

    Raises:
        SettingsError: If the stage is before the decoder or not the last.
    """
    if stage.mass is None:
        return
    if not 0 < stage.mass < 1:
        raise SettingsError(f"{option('keep_mass')} must be between 0 and 1, got {stage.mass:g}")
    if not stage.after_layer or not last:
        raise SettingsError(
            f"{option('keep_mass', f'{stage.mass:g}')} is about the last stage of a schedule, in the decoder"
        )


def _most(stage: Stage) -> int:
    """Visual tokens that a stage leaves of the largest request."""
    return stage.tokens if stage.after_layer else stage.max_tokens


def check_schedule(schedule: Schedule, model: ModelSpec, images: ImageLimits) -> None:
    """Refuse stages that contradict each other, the model or the pictures.

    Raises:
        SettingsError: If a stage lies outside the decoder or not behind the one before it, keeps more
            tokens than that one left it to choose from, or more of the largest request than it has room for.
    """
    layers, layer, most = model.text.num_layers, -1, images.max_image_tokens
    for index, stage in enumerate(schedule):
        name = f"stage {stage_number(schedule, index)}"
        if not layer < stage.after_layer < layers:
            raise SettingsError(
                f"{name} comes after layer {stage.after_layer}, expected {layer + 1} to {layers - 1}"
            )
        if stage.max_tokens > most:
            raise SettingsError(f"{name} keeps up to {stage.max_tokens} tokens, expected at most {most}")
        if stage.tokens > stage.max_tokens:
            raise SettingsError(f"{name} keeps {stage.tokens} tokens, over its maximum of {stage.max_tokens}")
        if (
            stage.after_layer
            and stage.share
            and share_of(stage.share, images.max_image_tokens) > stage.max_tokens
        ):
            raise SettingsError(
                f"{name} keeps a share of {stage.share:g}, over its maximum of {stage.max_tokens}"
            )
        if stage.after_layer == 0 and stage.share is not None and model.tiling is None:
            raise SettingsError(f"{name} keeps a share of each picture, but all have one size; give a number")
        check_score(stage.after_layer, stage.score, model)
        if stage.after_layer == 0 and (left := _entering(model, images, stage)) > stage.max_tokens:
            raise SettingsError(
                f"{name} leaves {left} tokens of the largest request, over its maximum of {stage.max_tokens}"
            )
        check_mass(stage, last=stage is schedule[-1])
        layer, most = stage.after_layer, _most(stage) - 1
