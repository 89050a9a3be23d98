"""The scores that rank the tokens, read out of a bundle's own graphs.

The graphs run in ONNX Runtime with one more output: the ``scores`` input of
``star::TopKGather``. Attention that is alike everywhere means that the wrong one is
read: the method's printed formulas average over the softmax's own axis, which
gives every token the same score.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from star_export.answer.generation import Result
from star_export.answer.pipeline import Pipeline
from star_export.arrays import Float32
from star_export.bundle import Bundle, open_bundle
from star_export.contract import (
    ALWAYS_KEPT,
    DECODE,
    IMAGE_POSITIONS,
    PREFILL,
    STAR_DOMAIN,
    TOPK_GATHER,
    VISION,
    decoder_slots,
    drops,
    kept_names,
)
from star_export.engines import Runtime
from star_export.engines.onnxruntime import OnnxRuntimeSession
from star_export.engines.session import Caches, Closing, DeviceArray, Int64, Tensor
from star_export.errors import BundleError, SettingsError, option
from star_export.preprocessing.conversation import Prompt
from star_export.preprocessing.images import ImageInput
from star_export.progress import CaseProgress
from star_export.specs import Keep
from star_export.specs.scores import CLS, LAST, RATERS, RECEIVED, TEXT, VISUAL_HEADS
from star_export.validation.probes import Probe, budgets_of, choose_probes

#: Scores whose standard deviation is below this share of their mean count as uniform.
#: Measured on the test checkpoints: 0.7 to 2.6 as they should be, and over the wrong axis
#: 1e-7 in stage 2 and 0.002 to 0.024 in stage 1, where CLS is left out of a sum that is 1 with it.
UNIFORM_SPREAD = 0.1

#: Scores that are attention, which a wrong axis would make uniform.
OF_ATTENTION = (RECEIVED, CLS, TEXT, LAST, RATERS, VISUAL_HEADS)

#: Edges of the histogram's bins, as multiples of the mean: half octaves; the outer bins are open.
HISTOGRAM_EDGES = 2.0 ** np.arange(-3.5, 4, 0.5)


@dataclass(frozen=True)
class StageScores:
    """What ranked the tokens that came to one stage, and who stayed.

    Attributes:
        number: 1 before the decoder, 2 of the first inside it, and so on.
        scores: float32 ``[N]``; NaN of tokens that no score ranks: newlines, and a CLS among the patches.
        kept: Indices into them, ascending ``[k]``.
    """

    number: int
    scores: Float32
    kept: Int64

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for NaN."""
        scores = [None if np.isnan(score) else score for score in self.scores.tolist()]
        return {"stage": self.number, "scores": scores, "kept": self.kept.tolist()}


@dataclass(frozen=True)
class Scores:
    """One answer with the scores behind it.

    Attributes:
        stages: Those of the bundle. The first ranks every visual token, those of all pictures one after the
            other, and each later one what the one before it kept.
        result: The answer.
    """

    stages: tuple[StageScores, ...]
    result: Result

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: those of the answer, and of every stage."""
        return self.result.to_dict() | {"stages": [stage.to_dict() for stage in self.stages]}


@dataclass(frozen=True, kw_only=True)
class ScoreStatistics:
    """How the scores of one stage are spread, on one picture.

    Attributes:
        picture: Name of the probe.
        prompt: Its question.
        stage: Its number.
        tokens: Tokens that were ranked.
        kept: Those of them that stayed.
        low: Lowest score, as a multiple of the mean; so are ``median`` and ``high``.
        spread: Standard deviation over mean.
        kept_share: The kept tokens' part of the sum of all scores.
        effective_tokens: ``exp`` of the entropy of the scores, normalised to sum 1.
        histogram: Tokens in each bin; see :data:`HISTOGRAM_EDGES`.
    """

    picture: str
    prompt: str
    stage: int
    tokens: int
    kept: int
    low: float
    median: float
    high: float
    spread: float
    kept_share: float
    effective_tokens: float
    histogram: tuple[int, ...]

    @property
    def uniform(self) -> bool:
        """Whether no token stands out, so that what was kept means nothing."""
        return self.spread < UNIFORM_SPREAD

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "passed": not self.uniform}


@dataclass(frozen=True)
class ScoreReport:
    """All statistics of one bundle: of each picture every stage, then the last one at each further budget."""

    bundle: str
    stages: tuple[ScoreStatistics, ...]
    limit: float = UNIFORM_SPREAD

    @property
    def passed(self) -> bool:
        """Whether every stage told its tokens apart on every picture."""
        return not any(stage.uniform for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "bundle": self.bundle,
            "passed": self.passed,
            "uniform_spread": self.limit,
            "histogram_edges": HISTOGRAM_EDGES.tolist(),
            "stages": [stage.to_dict() for stage in self.stages],
        }


class ScoringSession(OnnxRuntimeSession):
    """ONNX Runtime on the CPU that remembers the scores of its last runs.

    Args:
        bundle: An opened bundle.

    Attributes:
        patches: Scores before the decoder since they were cleared, float32 ``[P]`` of each picture.
        stages: Those inside the decoder, of the last prompt.

    Raises:
        SettingsError: If the bundle does not prune.
        BundleError: If ONNX Runtime cannot load a graph, or the bundle is bfloat16.
    """

    def __init__(self, bundle: Bundle) -> None:
        if not bundle.spec.schedule:
            raise SettingsError(
                f"this bundle was built with {option('prune', False)}: it ranks no tokens, so has no scores"
            )
        Runtime().check(bundle)
        self.patches: list[Float32] = []
        self.stages: tuple[StageScores, ...] = ()
        self._names: dict[str, list[str]] = {}
        super().__init__(bundle)

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph and remember its scores."""
        outputs = super().run(graph, feeds, caches)
        scores = [outputs.pop(name).numpy()[0] for name in self._names.get(graph, ())]
        if graph == VISION:  # of a share it ranks what is dropped, from the last token on
            self.patches += [-found[::-1] if drops(self.spec) else found for found in scores]
        elif graph == PREFILL:
            kept = [outputs[name].numpy()[0] for name in kept_names(self.spec)]
            images = np.asarray(feeds[IMAGE_POSITIONS])[0]
            self.stages = tuple(_inside(scores, kept, images))
        return outputs

    def _model(self, graph: str) -> Path | bytes:
        """The graph with the scores of its stages as more outputs."""
        if graph == DECODE:
            return super()._model(graph)
        model = onnx.load(self.bundle.graph_path(graph), load_external_data=False)
        gathers = (n for n in model.graph.node if (n.domain, n.op_type) == (STAR_DOMAIN, TOPK_GATHER))
        # Of a stage's own slots alone, without those of the text, prefill gathers places and ranks nothing.
        places = decoder_slots(self.spec)
        self._names[graph] = [gather.input[1] for gather in gathers if gather.input[2] not in places]
        self._plain_outputs[graph] += self._names[graph]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names[graph])
        return bytes(model.SerializeToString())


def _inside(scores: Sequence[Float32], kept: Sequence[Int64], images: Int64) -> Iterator[StageScores]:
    """The stages of a prefill, of visual tokens alone: text always stays.

    Args:
        scores: Of the tokens that came to each stage.
        kept: Prompt positions that each left.
        images: Those of the visual tokens.
    """
    positions = np.arange(len(scores[0])) if scores else images
    for number, (ranked, stays) in enumerate(zip(scores, kept, strict=True), 2):
        visual = np.isin(positions, images)
        yield StageScores(number, ranked[visual], np.flatnonzero(np.isin(positions[visual], stays)))
        positions = stays


class ScoreReader(Closing):
    """Answers prompts about pictures, and says by which scores the tokens were kept.

    Args:
        bundle: An opened bundle that prunes.

    Raises:
        SettingsError, BundleError: As :class:`ScoringSession`.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._session = ScoringSession(bundle)
        self.pipeline = Pipeline(bundle, self._session)

    def close(self) -> None:
        """Let go of the graphs."""
        self.pipeline.close()

    def read(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: Prompt,
        *,
        keep: Keep | None = None,
        max_new_tokens: int | None = None,
    ) -> Scores:
        """Answer one prompt; arguments and errors are those of :meth:`Pipeline.generate`.

        Raises:
            BundleError: If a score is inf or NaN and the logits are not.
        """
        self._session.patches.clear()
        result = self.pipeline.generate(image, prompt, keep=keep, max_new_tokens=max_new_tokens).result()
        stages = self._session.stages
        if self._session.patches:
            patches = np.concatenate(self._session.patches)
            stages = (StageScores(1, patches, np.array(result.stage1_indices)), *stages)
        if not all(np.isfinite(stage.scores).all() for stage in stages):
            raise BundleError(
                "some scores are inf or NaN; run `star-export check` without --scores, "
                "which names the first tensor that is not finite"
            )
        for stage in stages:
            stage.scores[np.abs(stage.scores) >= ALWAYS_KEPT] = np.nan
        return Scores(stages, result)


def check_scores(
    folder: Path,
    *,
    probes: Sequence[Probe] | int,
    keep: Sequence[Keep] = (),
    progress: CaseProgress = lambda _done, _total: None,
) -> ScoreReport:
    """Say how the scores of every stage are spread; fail where they are uniform.

    Args:
        folder: The bundle; every file is hashed first.
        probes: Pictures and prompts to look at, or how many of the built-in ones.
        keep: Budgets, as :meth:`Pipeline.generate` takes them; the bundle's own by default.
        progress: Called with cases done and cases in all.

    Raises:
        BundleError, SettingsError, InputError: If it cannot run.
    """
    stages: list[ScoreStatistics] = []
    bundle = open_bundle(folder, verify=True)
    _check_attention(bundle)
    with ScoreReader(bundle) as reader:
        chosen = choose_probes(probes, reader.pipeline)
        for index, probe in enumerate(chosen):
            budgets = budgets_of(probe, reader.pipeline, keep)
            for number, budget in enumerate(budgets):
                progress(index * len(budgets) + number, len(chosen) * len(budgets))
                found = reader.read(probe.pictures, probe.prompt, keep=budget, max_new_tokens=1)
                again = number > 0 and not isinstance(budget, tuple)  # one number is about the last stage
                stages += [statistics(stage, probe) for stage in found.stages[-1 if again else 0 :]]
    return ScoreReport(str(folder), tuple(stages))


def _check_attention(bundle: Bundle) -> None:
    """Refuse bundles whose scores may be nearly uniform and right."""
    for stage in bundle.spec.schedule:
        if stage.score not in OF_ATTENTION:
            raise SettingsError(
                f"statistics are of attention ({', '.join(OF_ATTENTION)}), and a stage of this bundle ranks "
                f"by {stage.score}; `star-export check` without --scores compares its kept tokens, "
                "`star-export show` draws its scores"
            )


def statistics(found: StageScores, probe: Probe) -> ScoreStatistics:
    """Statistics of one stage's scores, which are not negative; NaN are left out."""
    ranked = np.flatnonzero(~np.isnan(found.scores))
    scores, kept = found.scores[ranked].astype(np.float64), np.isin(ranked, found.kept)
    ratio = scores / scores.mean() if scores.any() else np.ones_like(scores)  # of the uniform score
    share = ratio / ratio.sum()
    present = share[share > 0]
    return ScoreStatistics(
        picture=probe.name,
        prompt=probe.text,
        stage=found.number,
        tokens=len(scores),
        kept=int(kept.sum()),
        low=float(ratio.min()),
        median=float(np.median(ratio)),
        high=float(ratio.max()),
        spread=float(ratio.std()),
        kept_share=float(share[kept].sum()),
        effective_tokens=float(np.exp(-(present * np.log(present)).sum())),
        histogram=tuple(np.bincount(np.digitize(ratio, HISTOGRAM_EDGES), minlength=16).tolist()),
    )
