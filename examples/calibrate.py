"""Quantise a LLaVA checkpoint with GPTQ on one's own pictures and questions, by llm-compressor.

It needs an environment of its own: llm-compressor 0.14 takes transformers 5.15 to 5.17. What it writes is
in compressed-tensors' format, which `star-export build` reads as it is.

    pip install llmcompressor
    python calibrate.py CHECKPOINT PAIRS.jsonl OUT
"""

import argparse
import json
from pathlib import Path

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor

#: Not the head, which decides between tokens, nor what sees.
WHOLE = ["re:.*lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]

parser = argparse.ArgumentParser(description="Quantise a LLaVA checkpoint on pictures and questions.")
parser.add_argument("checkpoint", type=Path)
parser.add_argument(
    "pairs", type=Path, help='Lines of {"image": "dog.png", "question": "..."}, as tune reads.'
)
parser.add_argument("output", type=Path)
parser.add_argument("--group", type=int, default=128, help="Inputs that share a scale: 32, 64 or 128.")
given = parser.parse_args()

model = AutoModelForImageTextToText.from_pretrained(given.checkpoint, dtype="auto")
processor = AutoProcessor.from_pretrained(given.checkpoint)


def encoded(line: str) -> dict[str, torch.Tensor]:
    """What the model takes for one pair."""
    pair = json.loads(line)
    content = [{"type": "image"}, {"type": "text", "text": pair["question"]}]
    prompt = f"USER: <image>\n{pair['question']} ASSISTANT:"
    if processor.chat_template:
        turns = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    picture = Image.open(given.pairs.parent / pair["image"]).convert("RGB")
    return dict(processor(picture, prompt, return_tensors="pt").to(model.dtype))


pairs = [encoded(line) for line in given.pairs.read_text().splitlines() if line.strip()]
weights = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": given.group,
}
recipe = GPTQModifier(
    config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=WHOLE, actorder="static"
)
oneshot(
    model=model,
    processor=processor,
    dataset=DataLoader(pairs, batch_size=None),
    recipe=recipe,
    num_calibration_samples=len(pairs),
    max_seq_length=2048,
)
model.save_pretrained(given.output, save_compressed=True)
processor.save_pretrained(given.output)
