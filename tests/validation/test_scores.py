"""Every score and form of schedule on every family, tower and decoder: kept sets, logits and caches."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from filelock import FileLock

from star_export import build as building
from star_export.specs import STAGE1_SCORES, STAGE2_SCORES, ExportSpec, Keep
from star_export.validation.check import check_bundle


@dataclass(frozen=True, kw_only=True)
class Case:
    """A bundle, and the budgets at which it is checked.

    Attributes:
        scores: One for each stage: ``--stage1`` and ``--stage2`` give one to all that are inside.
    """

    preset: str
    schedule: str
    scores: Sequence[str]
    keep: Sequence[Keep] = ()
    dtype: str = "float32"
    max_images: int = 1
    slow: bool = False

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.preset}-{self.schedule}-{self.dtype}".replace("%", "p")

    def resolve(self, options: building.BuildOptions, checkpoint: building.Checkpoint) -> ExportSpec:
        """As a build does, with scores of its own."""
        spec = _RESOLVE(options, checkpoint)
        pairs = zip(spec.schedule, self.scores, strict=True)
        return replace(spec, schedule=tuple(replace(stage, score=score) for stage, score in pairs))


_RESOLVE = building.resolve_spec

CASES = [
    Case(
        preset="mha",
        schedule="400@0,300@1,200@2,100@3,50@4,20@5",
        scores=("spread", "text-peaks", "last", "raters", "visual-heads", "drift"),
        keep=(20, (300, 200, 100, 60, 30, 7)),
    ),
    Case(
        preset="gqa",
        schedule="300@0,100@1,50@2,20@3",
        scores=("peaks", "key-norm", "raters", "text-peaks"),
        keep=(20, (200, 90, 50, 3)),
        slow=True,
    ),
    Case(
        preset="full",
        schedule="40@0,20@1,10@2",
        scores=("cls", "drift", "key-norm"),
        keep=((30, 20, 4),),
        slow=True,
    ),
    Case(
        preset="interleave",
        schedule="40@0,20@1,10@2",
        scores=("peaks", "visual-heads", "text-peaks"),
        keep=((20, 10, 9),),
        max_images=2,
        slow=True,
    ),
    Case(
        preset="next",
        schedule="30@0,20@1,9@2",
        scores=("spread", "text-peaks", "last"),
        keep=((20, 10, 5),),
        slow=True,
    ),
    Case(
        preset="onevision",
        schedule="70%@0,40%@1,20%@2",  # newlines stay
        scores=("peaks", "key-norm", "drift"),
        keep=(5, (40, 20, 6)),
        max_images=2,
    ),
    Case(preset="next-mistral", schedule="fast-16", scores=("cls",), keep=(16, 9), dtype="float16"),
    Case(preset="next", schedule="10@2", scores=("visual-heads",), keep=(10, 3), max_images=2, slow=True),
    Case(
        preset="feature-layers",
        schedule="balanced-16",
        scores=("spread", "last"),
        keep=((32, 5), (16, 7)),
        dtype="float16",
        slow=True,
    ),
    Case(
        preset="onevision",
        schedule="fast-20",  # newlines go first
        scores=("spread",),
        keep=(20, 7),
        dtype="float16",
        max_images=3,
        slow=True,
    ),
    Case(
        preset="next-llama3", schedule="20@0,9@1", scores=("received", "raters"), dtype="float16", slow=True
    ),
    Case(preset="interleave", schedule="fast-30", scores=("received",), dtype="float16", slow=True),
    Case(preset="feature-layers", schedule="40@0,10@1", scores=("cls", "text"), slow=True),
    Case(
        preset="gqa",
        schedule="300@0,100@2",
        scores=("spread", "visual-heads"),
        keep=(100, (150, 20)),
        dtype="float16",
        slow=True,
    ),
]


@pytest.fixture
def built(
    shared: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Case], Path]:
    """A copy of a case's bundle: check writes its report into it."""

    def get(case: Case) -> Path:
        folder = shared / case.name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                monkeypatch.setattr(building, "resolve_spec", case.resolve)
                options = building.BuildOptions(
                    model=str(checkpoint(case.preset)),
                    output=folder,
                    schedule=case.schedule,
                    max_text_tokens=128,
                    max_new_tokens=8,
                    max_images=case.max_images,
                    dtype=case.dtype,
                )
                building.build(options)
        return shutil.copytree(folder, tmp_path / "bundle")

    return get


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=pytest.mark.slow if c.slow else ()) for c in CASES]
)
def test_every_stage_keeps_what_the_reference_keeps(built: Callable[[Case], Path], case: Case) -> None:
    report = check_bundle(built(case), probes=2, keep=case.keep, max_new_tokens=3)
    assert [(c.name, s.stage, s.detail) for c in report.cases for s in c.stages if s.status == "fail"] == []
    assert report.passed
    sets = [f"stage{number}_set" for number in _numbers(case.schedule)]
    for found in report.cases:
        assert [stage.stage for stage in found.stages if stage.stage.endswith("_set")] == sets
        assert found.keep in case.keep or not case.keep or case.max_images > 1
    if case.dtype == "float32":
        kept = [s for c in report.cases for s in c.stages if s.stage.endswith("_set")]
        assert sum(stage.status == "pass" for stage in kept) >= 0.8 * len(kept)  # few by near-ties


def _numbers(schedule: str) -> list[int]:
    """Of its stages, as users count them."""
    inside = schedule.count("@") - schedule.count("@0")
    first = [1] if "@0" in schedule or "-" in schedule else []
    return [*first, *range(2, 2 + (1 if schedule.startswith("balanced") else inside))]


def test_every_score_is_among_them() -> None:
    assert {score for case in CASES for score in case.scores} == {*STAGE1_SCORES, *STAGE2_SCORES}
