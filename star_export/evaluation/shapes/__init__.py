"""The task ``shapes``: questions about drawn pictures, answered by looking at the right place."""

import re

from PIL import Image

from star_export.evaluation.shapes.questions import KINDS, ask
from star_export.evaluation.shapes.scenes import SPLITS, draw, random_scene, rng_of
from star_export.evaluation.task import Example, Task


class Shapes(Task):
    """Kinds take turns; every question has a picture of its own."""

    splits = SPLITS
    kinds: tuple[str, ...] = KINDS
    max_new_tokens = 8

    def size(self, split: str) -> int:
        """Two hundred questions of each kind; there is no end to the pictures for training."""
        return 1 << 32 if split == "train" else 200 * len(self.kinds)

    def example(self, split: str, seed: int, index: int) -> Example:
        """Scenes are drawn by lot until one has a question of the kind whose turn it is."""
        rng = rng_of(split, seed, index)
        kind = KINDS[index % len(KINDS)]
        while True:
            scene = random_scene(rng)
            question = ask(scene, kind, rng)
            if question is not None:
                break
        return Example(
            index=index,
            kind=kind,
            image=Image.fromarray(draw(scene)),
            question=question.text,
            answer=question.answer,
        )

    def score(self, example: Example, answer: str) -> float:
        """1 for the exact answer; case, spaces and a final full stop do not matter."""
        words = re.sub(r"\s+", " ", answer.strip().rstrip(".").lower())
        return float(words == example.answer)
