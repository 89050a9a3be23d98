"""What the checkpoint's own processor makes of a picture and a prompt.

The reference side of preprocessing: nothing here comes from the bundle but a
chat template that the user gave to the build, so a wrong template, a misplaced
image token or a wrong question row shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from star_export.errors import CheckpointError
from star_export.preprocessing import TokenizedPrompt
from star_export.preprocessing.convert import stored_template
from star_export.validation.probes import Messages
from star_export.validation.report import StageResult

#: What the processors give for pictures.
_PICTURES = ("pixel_values", "image_sizes", "batch_num_images")


@dataclass(frozen=True)
class ExpectedInput:
    """What the processor makes of a request.

    Attributes:
        pictures: What the model takes pictures as; ``pixel_values`` are float32 ``[N, 3, H, W]``, or
            ``[N, T, 3, H, W]`` where pictures are cut into tiles.
        full_ids: int64 ``[S]`` with one image token per visual token, as ``generate`` takes them.
        image_token_id: Token that stands for a visual token.
    """

    pictures: dict[str, torch.Tensor]
    full_ids: torch.Tensor
    image_token_id: int

    @property
    def pixels(self) -> torch.Tensor:
        """``[N, T, 3, H, W]``."""
        pixels = self.pictures["pixel_values"]
        return pixels if pixels.ndim == 5 else pixels[:, None]

    def prompt(self, lengths: Sequence[int], entering: Sequence[int]) -> "ExpectedPrompt":
        """The prompt with fewer visual tokens.

        Args:
            lengths: Visual tokens of each picture.
            entering: Those of them that are left when the decoder starts.

        Raises:
            CheckpointError: If the processor counts other visual tokens than the model.
        """
        visual = self.full_ids == self.image_token_id
        if sum(lengths) != visual.sum():
            raise CheckpointError(
                f"the checkpoint's processor makes {int(visual.sum())} image tokens, its model {sum(lengths)}"
            )
        left = [torch.arange(length) < count for length, count in zip(lengths, entering, strict=True)]
        stays = torch.ones_like(visual)
        stays[visual] = torch.cat(left)
        ids = self.full_ids[stays]
        positions = (ids == self.image_token_id).nonzero().flatten()
        return ExpectedPrompt(ids, positions, torch.arange(int(positions[-1]) + 1, len(ids)))


@dataclass(frozen=True)
class ExpectedPrompt:
    """What the reference's decoder takes.

    Attributes:
        input_ids: int64 ``[S]`` with one image token per visual token that is left.
        image_positions: int64 ``[V]``.
        query_positions: int64 ``[Q]``.
    """

    input_ids: torch.Tensor
    image_positions: torch.Tensor
    query_positions: torch.Tensor


def expected_input(
    processor: Any,
    pictures: Sequence[Image.Image],
    prompt: str | Messages,
    *,
    chat_template: str | None = None,
) -> ExpectedInput:
    """Preprocess with transformers.

    Args:
        processor: The checkpoint's own processor.
        pictures: RGB pictures of one request.
        prompt: A question, a whole prompt with its image tokens, or a conversation.
        chat_template: Used instead of the checkpoint's own.
    """
    inputs = processor_inputs(processor, pictures, _render(processor, len(pictures), prompt, chat_template))
    return ExpectedInput(picture_inputs(inputs), inputs["input_ids"][0], processor.image_token_id)


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


def _render(processor: Any, images: int, prompt: str | Messages, chat_template: str | None) -> str:
    """The rendered prompt with an image token for each picture."""
    image = processor.image_token
    if isinstance(prompt, str) and image in prompt:
        return prompt
    question = [*[{"type": "image"}] * images, {"type": "text", "text": prompt}]
    messages: Messages = [{"role": "user", "content": question}] if isinstance(prompt, str) else list(prompt)
    template = chat_template or stored_template(processor)
    if template is None:
        said = [f"{message['role'].upper()}: {_joined(message, image)} " for message in messages]
        return "".join([*said, "ASSISTANT:"])

    def apply(conversation: Messages) -> str:
        text: str = processor.apply_chat_template(
            conversation, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        return text

    asked = messages[-1]["content"]
    longer = [*messages[:-1], {**messages[-1], "content": [*asked[:-1], {"type": "text", "text": "?"}]}]
    try:
        if apply(messages).count(image) == images and apply(messages) != apply(longer):
            return apply(messages)
    except Exception:  # whatever a template for text alone makes of a list
        pass
    return apply([{**message, "content": _joined(message, image)} for message in messages])


def _joined(message: Mapping[str, Any], image: str) -> str:
    """A message's content as one text."""
    return "".join(part.get("text", f"{image}\n") for part in message["content"])


def compare_tokenized(found: TokenizedPrompt, expected: ExpectedPrompt) -> StageResult | None:
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


def stacked(pictures: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Tiles of each picture as the processors stack them: ``[N, T, 3, H, W]``, zeros where one has fewer."""
    batch = np.zeros((len(pictures), max(map(len, pictures)), *pictures[0].shape[1:]), np.float32)
    for row, tiles in zip(batch, pictures, strict=True):
        row[: len(tiles)] = tiles
    return batch
