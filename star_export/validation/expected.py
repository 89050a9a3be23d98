"""What the checkpoint's own processor makes of a picture and a prompt.

The reference side of preprocessing: nothing here comes from the bundle but a
chat template that the user gave to the build, so a wrong template, a misplaced
image token or a wrong question row shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from star_export.preprocessing import TokenizedPrompt
from star_export.preprocessing.convert import stored_template
from star_export.validation.report import StageResult

#: What the processors give for pictures.
_PICTURES = ("pixel_values", "image_sizes", "batch_num_images")


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


def expected_input(
    processor: Any,
    picture: Image.Image,
    prompt: str,
    *,
    image_tokens: int,
    chat_template: str | None = None,
) -> ExpectedInput:
    """Preprocess with transformers.

    Args:
        processor: The checkpoint's ``LlavaProcessor``.
        picture: RGB picture.
        prompt: As the user typed it.
        image_tokens: Visual tokens when the decoder starts.
        chat_template: Used instead of the checkpoint's own.
    """
    inputs = processor_inputs(processor, [picture], _render(processor, prompt, chat_template))
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


def processor_inputs(processor: Any, pictures: Sequence[Image.Image], text: str) -> Any:
    """What a processor makes of a rendered prompt, with one BOS, and the pictures of one request."""
    bos = processor.tokenizer.bos_token
    return processor(
        images=[list(pictures)],
        text=[text],
        return_tensors="pt",
        add_special_tokens=bos is None or not text.startswith(bos),
    )


def picture_inputs(inputs: Any) -> dict[str, torch.Tensor]:
    """Those of a processor's results that are about pictures."""
    return {name: inputs[name] for name in _PICTURES if name in inputs}


def _render(processor: Any, prompt: str, chat_template: str | None) -> str:
    image = processor.image_token
    if image in prompt:
        return prompt
    template = chat_template or stored_template(processor)
    if template is None:
        return f"USER: {image}\n{prompt} ASSISTANT:"

    def apply(content: str | list[dict[str, str]]) -> str:
        conversation = [{"role": "user", "content": content}]
        text: str = processor.apply_chat_template(
            conversation, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        return text

    def ask(question: str) -> str:
        return apply([{"type": "image"}, {"type": "text", "text": question}])

    try:
        if ask(prompt).count(image) == 1 and ask(prompt) != ask(f"{prompt}?"):
            return ask(prompt)
    except Exception:  # whatever a template for text alone makes of a list
        pass
    return apply(f"{image}\n{prompt}")


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
