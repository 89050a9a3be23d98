"""How many answers of a mini OneVision model are right, with every visual token and with the base tile alone.

Example:
    python -m models.training.examination models/mini-onevision --limit 400
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
)

from star_export.evaluation.numbers import Numbers
from star_export.evaluation.task import Example


class Examinee:
    """A checkpoint in transformers, float32; answers are greedy."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
        self.model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def answer(self, example: Example, *, tiles: bool) -> str:
        """The answer to a question, from the base tile alone when ``tiles`` is false."""
        core, embed = self.model.model, self.model.get_input_embeddings()
        pixels = self.images(example.image, return_tensors="pt")
        (features,) = core.get_image_features(pixels["pixel_values"], pixels["image_sizes"]).pooler_output
        if not tiles:
            features = features[: core.vision_tower.embeddings.num_patches]
        content = [{"type": "image"}, {"type": "text", "text": example.question}]
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, after = (
            embed(self.tokenizer(text, return_tensors="pt")["input_ids"][0])
            for text in prompt.split("<image>")
        )
        sequence = torch.cat([before, features, after])[None]
        ids = self.model.generate(
            inputs_embeds=sequence,
            attention_mask=torch.ones(sequence.shape[:2], dtype=torch.long),
            max_new_tokens=Numbers.max_new_tokens,
            do_sample=False,
        )
        return str(self.tokenizer.decode(ids[0], skip_special_tokens=True))


def main() -> None:
    """Print right answers in percent, by kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", choices=Numbers.splits, default="test")
    parser.add_argument("--limit", type=int, default=400, help="questions")
    arguments = parser.parse_args()
    task, examinee = Numbers(), Examinee(arguments.model)
    for tiles in (True, False):
        right = defaultdict(list)
        for index in range(arguments.limit):
            example = task.example(arguments.split, 0, index)
            score = task.score(example, examinee.answer(example, tiles=tiles))
            for kind in ("all", example.kind):
                right[kind].append(100 * score)
        each = ", ".join(f"{kind} {sum(scores) / len(scores):.1f}" for kind, scores in right.items())
        print(f"{'all tokens' if tiles else 'base tile'}: {each}", flush=True)


if __name__ == "__main__":
    main()
