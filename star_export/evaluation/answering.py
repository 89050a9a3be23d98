"""Greedy answers with visual tokens chosen by any rule, from the graphs that users run."""

import time
from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from star_export.answer.pipeline import Pipeline
from star_export.answer.request import Request
from star_export.answer.sampling import Sampling
from star_export.answer.steps import VisionOutput
from star_export.engines.session import HostArray, on_host
from star_export.evaluation.record import ScoredAnswer
from star_export.evaluation.task import Example, Task, needed_image
from star_export.preprocessing import PreparedImage, TokenizedPrompt
from star_export.serving.scheduler import Scheduler
from star_export.serving.ticket import Ticket
from star_export.specs import Keep


class Variant(Protocol):
    """One way to answer."""

    def answer(self, example: Example, task: Task) -> ScoredAnswer:
        """The answer to one question, with its score."""

    def answer_all(self, examples: Sequence[Example], task: Task) -> list[ScoredAnswer]:
        """The answers to several questions."""
        return [self.answer(example, task) for example in examples]


class Looker:
    """A pipeline that remembers what it saw of one picture, since several variants ask about it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._prepared: tuple[Image.Image, PreparedImage] | None = None
        self._key = b""
        self._seen: dict[int | None, HostArray] = {}

    def prepare(self, example: Example) -> PreparedImage:
        """The example's picture."""
        if self._prepared is None or self._prepared[0] is not example.image:
            picture = needed_image(example)
            (image,) = self.pipeline.prepare(picture)
            self._prepared = picture, image
        return self._prepared[1]

    def look(self, example: Example, stage1_keep: int | None = None) -> HostArray:
        """Visual tokens of the example's picture ``[1, N1, C]``, as many as asked for or as stage 1 keeps."""
        image = self.prepare(example)
        if image.key != self._key:
            self._key, self._seen = image.key, {}
        if stage1_keep not in self._seen:
            vision = self.pipeline.steps.encode_image(image, stage1_keep=stage1_keep)
            self._seen[stage1_keep] = on_host(vision.features)
        return self._seen[stage1_keep]


class Bundled(Variant):
    """A bundle as ``star-export run`` uses it, at one budget.

    Args:
        looker: The bundle.
        keep: Budgets; the bundle's own for each picture when None.
    """

    def __init__(self, looker: Looker, keep: Keep | None) -> None:
        self.looker, self.keep = looker, keep

    def answer(self, example: Example, task: Task) -> ScoredAnswer:
        """The greedy answer."""
        pipeline, images = self.looker.pipeline, [self.looker.prepare(example)] if example.image else []
        keep = pipeline.budget(self.keep, images)
        tokens = pipeline.tokenize(example.question, images, keep=keep)
        features = [self.looker.look(example, entering) for entering in pipeline.entering(images, keep)]
        return respond(pipeline, tokens, features, keep, example, task)


class Batched(Variant):
    """A bundle as a server uses it: questions are decoded together.

    Args:
        scheduler: Of the bundle.
        keep: As in :class:`Bundled`.
    """

    def __init__(self, scheduler: Scheduler, keep: Keep | None) -> None:
        self.scheduler, self.keep = scheduler, keep

    def answer(self, example: Example, task: Task) -> ScoredAnswer:
        """The greedy answer."""
        return self.answer_all([example], task)[0]

    def answer_all(self, examples: Sequence[Example], task: Task) -> list[ScoredAnswer]:
        """The greedy answers, of as many questions at once as the scheduler has slots."""
        tickets = [self._submit(example, task) for example in examples]
        answers = [ticket.answer() for ticket in tickets]
        return [
            ScoredAnswer(
                answer.text.strip(), task.score(example, answer.text.strip()), answer.timings_ms["prefill"]
            )
            for example, answer in zip(examples, answers, strict=True)
        ]

    def _submit(self, example: Example, task: Task) -> Ticket:
        pipeline = self.scheduler.pipeline
        images = pipeline.prepare(example.image) if example.image else ()
        keep = pipeline.budget(self.keep, images)
        request = Request(
            images=images,
            tokens=pipeline.tokenize(example.question, images, keep=keep),
            keep=keep,
            max_new_tokens=min(task.max_new_tokens, pipeline.spec.max_new_tokens),
            sampling=Sampling(),
        )
        return self.scheduler.submit(request)


def respond(
    pipeline: Pipeline,
    tokens: TokenizedPrompt,
    features: Sequence[HostArray],
    keep: Keep | None,
    example: Example,
    task: Task,
) -> ScoredAnswer:
    """Prefill with the visual tokens of each picture, decode greedily to the end token, score."""
    visions = [VisionOutput(found, None, found.shape[1]) for found in features]
    start = time.perf_counter()
    limit = min(task.max_new_tokens, pipeline.spec.max_new_tokens)
    state = pipeline.steps.prefill(tokens, *visions, keep=keep, new_tokens=limit)
    ids = [state.best_token()]
    prefill_ms = 1000 * (time.perf_counter() - start)
    while ids[-1] not in pipeline.end_token_ids and len(ids) < limit:
        pipeline.steps.decode(state, ids[-1])
        ids.append(state.best_token())
    text = pipeline.tokenizer.decode(ids).strip()
    return ScoredAnswer(text, task.score(example, text), prefill_ms)
