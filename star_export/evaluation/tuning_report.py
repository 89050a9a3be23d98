"""What a search for schedules found: as a table, as a plot, and as the line that builds its proposal."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from star_export.build import BuildOptions
from star_export.bundle import Bundle
from star_export.evaluation.methods import UNPRUNED, scoring_rows
from star_export.evaluation.plots import draw, pareto
from star_export.evaluation.record import Row
from star_export.evaluation.statistics import Estimate, ScoreTable, markdown
from star_export.evaluation.trials import Trial
from star_export.flops import Layout, prefill_flops
from star_export.specs import ExportSpec


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one question costs without pruning.

    Attributes:
        picture: Visual tokens of its picture, and newlines among them.
        text_tokens: Tokens of its prompt that are not visual.
        query_tokens: Those of them behind the picture.
    """

    picture: tuple[int, int]
    text_tokens: int
    query_tokens: int


@dataclass(frozen=True, kw_only=True)
class TrialReport:
    """One schedule's result.

    Attributes:
        name: What it is called.
        schedule: As ``star-export build --schedule`` takes it; None unpruned.
        stage1: Score before the decoder.
        stage2: Score inside it.
        tokens_per_layer: Average of visual tokens over the decoder's layers and the questions.
        flops: Floating-point operations of a prefill, counted exactly, mean over the questions.
        agreement: Share of answers that are the unpruned model's; None for that one.
        accuracy: Mean score; None where the questions came without answers.
        retention: What it keeps: its accuracy divided by the unpruned model's, or the agreement.
    """

    name: str
    schedule: str | None
    stage1: str | None
    stage2: str | None
    tokens_per_layer: float
    flops: float
    agreement: Estimate | None
    accuracy: Estimate | None
    retention: Estimate | None

    @property
    def kind(self) -> str:
        """Its places and scores, without budgets."""
        places = [place.partition("@")[2] for place in (self.schedule or "").split(",")]
        return " ".join([f"after {'+'.join(places)}:", *(s for s in (self.stage1, self.stage2) if s)])


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A finished search.

    Attributes:
        bundle: The bundle's folder.
        questions: How many were asked.
        answered: Whether their answers are known.
        tolerance: What may be lost.
        trials: Unpruned, then every schedule.
        proposal: Name of the one with the least arithmetic within the tolerance; None if all lose more.
        command: The command that builds it.
        answers: The file with every answer.
    """

    bundle: str
    questions: int
    answered: bool
    tolerance: float
    trials: tuple[TrialReport, ...]
    proposal: str | None
    command: str | None
    answers: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A row per schedule, the least arithmetic last; those on the Pareto front are bold."""
        whole, *trials = self.trials
        front = {trial.name for trial in _front(trials)}
        head = ["schedule", "scores", "per layer", "FLOPs", "agreement %", "accuracy %", "kept %"]
        rows = []
        for trial in (whole, *sorted(trials, key=lambda trial: -trial.flops)):
            name = trial.schedule or UNPRUNED
            rows.append(
                [
                    f"**{name}**" if trial.name in front else name,
                    ", ".join(score for score in (trial.stage1, trial.stage2) if score),
                    f"{trial.tokens_per_layer:.0f}",
                    f"{100 * trial.flops / whole.flops:.0f} %",
                    *(_percent(value) for value in (trial.agreement, trial.accuracy, trial.retention)),
                ]
            )
        return markdown(head, rows)

    def to_png(self) -> bytes:
        """What is kept against arithmetic, a line for each choice of places and scores; needs matplotlib."""
        whole, *trials = self.trials
        kinds = dict.fromkeys(trial.kind for trial in trials)

        def point(trial: TrialReport) -> tuple[float, float]:
            return 100 * trial.flops / whole.flops, 100 * kept(trial)

        return draw(
            {name: [point(t) for t in trials if t.kind == name] for name in kinds},
            [point(trial) for trial in _front(trials)],
            strong={},
            title=f"{self.bundle}, {self.questions} questions",
            cost="prefill FLOPs, % of unpruned",
            worth="accuracy, % of unpruned" if self.answered else "same answers as unpruned, %",
        )


class Reporter:
    """Results of trials on the same questions.

    Args:
        rows: The answers.
        spec: The model's.
        asked: What each question costs.
        answered: Whether the expected answers are known.
    """

    def __init__(
        self, rows: Sequence[Row], spec: ExportSpec, asked: Sequence[Asked], *, answered: bool
    ) -> None:
        self.spec, self.asked, self.answered = spec, asked, answered
        self.scores, self.agreements = ScoreTable(rows), ScoreTable([_agreements(row) for row in rows])

    def of(self, trial: Trial | None) -> TrialReport:
        """The result of one; of the unpruned model for None."""
        name = trial.name if trial else UNPRUNED
        score = self.scores.score(name, baseline=UNPRUNED)
        agreement = self.agreements.score(name).accuracy if trial else None
        layers = self.spec.model.text.num_layers
        layouts = [self._layout(trial, asked) for asked in self.asked]
        return TrialReport(
            name=name,
            schedule=trial.schedule if trial else None,
            stage1=trial.stage1 if trial else None,
            stage2=trial.stage2 if trial else None,
            tokens_per_layer=fmean(fmean(layout.tokens(layers)) for layout in layouts),
            flops=fmean(self._flops(trial, asked) for asked in self.asked),
            agreement=agreement,
            accuracy=score.accuracy if self.answered else None,
            retention=(score.retention if self.answered else None) or agreement,
        )

    def _layout(self, trial: Trial | None, asked: Asked) -> Layout:
        return trial.layout(asked.picture) if trial else Layout(entering=asked.picture[0])

    def _flops(self, trial: Trial | None, asked: Asked) -> float:
        rows = scoring_rows(trial.stage2 if trial else None, asked.query_tokens)
        sizes = {"text_tokens": asked.text_tokens, "query_tokens": rows}
        return prefill_flops(self.spec.model.text, self._layout(trial, asked), **sizes).exact


def kept(trial: TrialReport) -> float:
    """What a schedule keeps; 1 is all."""
    return trial.retention.value if trial.retention else 1.0


def smallest(trials: Sequence[TrialReport], tolerance: float) -> int | None:
    """Number of the one with the least arithmetic that loses no more than ``tolerance``; None if all do."""
    good = [index for index, trial in enumerate(trials) if kept(trial) > 1 - tolerance - 1e-9]
    return min(good, key=lambda index: trials[index].flops, default=None)


def build_command(bundle: Bundle, trial: Trial, model: str | None) -> str:
    """The line that builds a bundle like this one with the schedule as its own.

    Args:
        bundle: The bundle that was tuned.
        trial: The schedule.
        model: Where the source checkpoint is; by default, where the manifest says.
    """
    spec, source, command = bundle.spec, bundle.manifest["source"], ["star-export", "build"]
    given = {
        "model": (model or source["model"], None),
        "revision": (None if model else source["revision"], None),
        "schedule": (trial.schedule, None),
        "stage1": (trial.stage1, None),
        "stage2": (trial.stage2, None),
        "max-images": (spec.images.max_images, 1),
        "max-text-tokens": (spec.max_text_tokens, BuildOptions.max_text_tokens),
        "max-new-tokens": (spec.max_new_tokens, BuildOptions.max_new_tokens),
        "dtype": (spec.dtype, BuildOptions.dtype),
        "output": (f"{bundle.folder.name}-tuned", None),
    }
    for name, (value, default) in given.items():
        command += [f"--{name}", str(value)] if value != default else []
    for name, on in {"proportional": trial.spec.proportional}.items():
        command += [f"--{name}"] if on else []
    return shlex.join(command)


def _front(trials: Sequence[TrialReport]) -> list[TrialReport]:
    return pareto(trials, cost=lambda trial: trial.flops, worth=kept)


def _percent(value: Estimate | None) -> str:
    return "" if value is None else value.percent()


def _agreements(row: Row) -> Row:
    """The same, scored by whether an answer is the unpruned model's."""
    whole = row.answers[UNPRUNED].text
    answers = {name: replace(found, score=float(found.text == whole)) for name, found in row.answers.items()}
    return replace(row, answers=answers)
