"""Greedy answers with visual tokens chosen by any rule, from the graphs that users run."""

import time
from typing import Protocol

from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import VisionOutput
from star_export.engines.session import HostArray, on_host
from star_export.evaluation.record import ScoredAnswer
from star_export.evaluation.task import Example, Task
from star_export.preprocessing import PreparedImage, TokenizedPrompt


class Variant(Protocol):
    """One way to answer."""

    def answer(self, example: Example, task: Task) -> ScoredAnswer:
        """The answer to one question, with its score."""


class Looker:
    """A pipeline that remembers what it saw of one picture, since several variants ask about it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._key = b""
        self._seen: dict[int | None, HostArray] = {}

    def prepare(self, example: Example) -> PreparedImage:
        """The example's picture."""
        (image,) = self.pipeline.prepare(example.image)
        return image

    def look(self, example: Example, stage1_keep: int | None = None) -> HostArray:
        """Visual tokens ``[1, N1, C]`` of the example's picture; ``N1`` is the bundle's by default."""
        image = self.prepare(example)
        if image.key != self._key:
            self._key, self._seen = image.key, {}
        if stage1_keep not in self._seen:
            vision = self.pipeline.steps.encode_image(image, stage1_keep=stage1_keep)
            self._seen[stage1_keep] = on_host(vision.features)
        return self._seen[stage1_keep]


class Bundled:
    """A bundle as ``star-export run`` uses it, at one budget.

    Args:
        looker: The bundle.
        keep: Visual tokens after stage 2; None for an unpruned bundle.
    """

    def __init__(self, looker: Looker, keep: int | None) -> None:
        self.looker, self.keep = looker, keep

    def answer(self, example: Example, task: Task) -> ScoredAnswer:
        """The greedy answer."""
        tokens = self.looker.pipeline.tokenize(example.question, [self.looker.prepare(example)])
        features = self.looker.look(example)
        return respond(self.looker.pipeline, tokens, features, self.keep, example, task)


def respond(
    pipeline: Pipeline,
    tokens: TokenizedPrompt,
    features: HostArray,
    keep: int | None,
    example: Example,
    task: Task,
) -> ScoredAnswer:
    """Prefill, decode greedily to the end token, score."""
    vision = VisionOutput(features, None, features.shape[1])
    start = time.perf_counter()
    state = pipeline.steps.prefill(tokens, vision, keep=keep)
    ids = [state.best_token()]
    prefill_ms = 1000 * (time.perf_counter() - start)
    limit = min(task.max_new_tokens, pipeline.spec.max_new_tokens)
    while ids[-1] not in pipeline.end_token_ids and len(ids) < limit:
        pipeline.steps.decode(state, ids[-1])
        ids.append(state.best_token())
    text = pipeline.tokenizer.decode(ids).strip()
    return ScoredAnswer(text, task.score(example, text), prefill_ms)
