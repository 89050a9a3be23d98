"""What the checkpoint's own processor makes of a picture and a prompt.

The reference side of preprocessing: nothing here comes from the bundle, so a
wrong template, a misplaced image token or a wrong question row shows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from star_export.preprocessing import TokenizedPrompt
from star_export.validation.report import StageResult


@dataclass(frozen=True)
class ExpectedInput:
    """Inputs of the reference.

    Attributes:
        pixel_values: float32 ``[1, 3, H, W]``.
        full_ids: int64 ``[S]`` with one image token per patch, as ``generate`` takes them.
        input_ids: int64 ``[S]`` with one image token per visual token of the decoder.
        image_positions: int64 ``[V]``.
        query_positions: int64 ``[Q]``.
    """

    pixel_values: torch.Tensor
    full_ids: torch.Tensor
    input_ids: torch.Tensor
    image_positions: torch.Tensor
    query_positions: torch.Tensor


def expected_input(processor: Any, picture: Image.Image, prompt: str, *, image_tokens: int) -> ExpectedInput:
    """Preprocess with transformers.

    Args:
        processor: The checkpoint's ``LlavaProcessor``.
        picture: RGB picture.
        prompt: As the user typed it.
        image_tokens: Visual tokens when the decoder starts.
    """
    inputs = processor_inputs(processor, picture, _render(processor, prompt))
    full = inputs["input_ids"][0]
    visual = full == processor.image_token_id
    first, last = visual.nonzero().flatten()[[0, -1]].tolist()
    ids = torch.cat([full[:first], full[first : first + 1].repeat(image_tokens), full[last + 1 :]])
    positions = torch.arange(len(ids))
    return ExpectedInput(
        pixel_values=inputs["pixel_values"].float(),
        full_ids=full,
        input_ids=ids,
        image_positions=positions[first : first + image_tokens],
        query_positions=positions[first + image_tokens :],
    )


def processor_inputs(processor: Any, picture: Image.Image, text: str) -> Any:
    """``input_ids``, ``attention_mask`` and ``pixel_values`` of a rendered prompt, whole and with one BOS."""
    bos = processor.tokenizer.bos_token
    return processor(
        images=picture,
        text=text,
        return_tensors="pt",
        add_special_tokens=bos is None or not text.startswith(bos),
        truncation=False,  # a tokenizer.json may ask for either
        padding=False,
    )


def _render(processor: Any, prompt: str) -> str:
    if processor.image_token in prompt:
        return prompt
    if processor.chat_template is None:
        return f"USER: {processor.image_token}\n{prompt} ASSISTANT:"
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text


def compare_tokenized(found: TokenizedPrompt, expected: ExpectedInput) -> StageResult | None:
    """A failed stage if ids, image places or question rows differ, else None."""
    pairs: tuple[tuple[str, npt.NDArray[np.int64], torch.Tensor], ...] = (
        ("input_ids", found.input_ids, expected.input_ids),
        ("image_positions", found.image_positions, expected.image_positions),
        ("query_positions", found.query_positions, expected.query_positions),
    )
    for name, ours, theirs in pairs:
        if not np.array_equal(ours[0], theirs.numpy()):
            detail = f"{name} differ: {_summary(ours[0])}, expected {_summary(theirs.numpy())}"
            return StageResult("preprocessing", "fail", float("inf"), 0.0, detail)
    return None


def _summary(values: npt.NDArray[np.int64]) -> str:
    """Length and both ends of a list of ids or positions."""
    return f"{len(values)} from {values[:4].tolist()} to {values[-4:].tolist()}"
