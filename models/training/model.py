"""The model during training: the Hugging Face modules, packed questions, and two heads for practice."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from models.training import attention  # noqa: F401  (registers itself)
from models.training.lessons import HALFWAY, LABELS, SEGMENT
from models.training.network import LAYERS, PATCH

_NOTHING = 0.1  # weight of patches that show nothing: most do


@dataclass(frozen=True)
class Outcome:
    """What one batch gave.

    Attributes:
        patch_loss: Cross entropy of the patches' labels.
        answer_loss: Cross entropy of the answers' tokens, 0 without questions.
        name_loss: Cross entropy of what the names stand for, likewise.
        right_patches: Share of patches that show something and are wholly right.
        right_answers: Which answers are wholly right: bool ``[B, Q]``.
    """

    patch_loss: torch.Tensor
    answer_loss: torch.Tensor
    name_loss: torch.Tensor
    right_patches: torch.Tensor
    right_answers: torch.Tensor


class Student(nn.Module):
    """A LLaVA and two heads: one tells what each patch shows, one what a question's names stand for.

    The first reads the tower's last layer, the language model the one before, as in LLaVA-1.5. The
    second reads the last token of each name in the middle of the language model: to compare two
    places, it must have found each of them first. What it tells: :data:`models.training.lessons.HALFWAY`.

    Args:
        config: The model's configuration.
        before: Token ids before the picture ``[n]``.
    """

    def __init__(self, config: LlavaConfig, before: torch.Tensor) -> None:
        super().__init__()
        self.llava = LlavaForConditionalGeneration(config)
        self.head = nn.Linear(config.vision_config.hidden_size, sum(LABELS))
        self.name_head = nn.Linear(config.text_config.hidden_size, sum(HALFWAY))
        self.register_buffer("before", before, persistent=False)
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        core = self.llava.model
        core.language_model.config.prefix = self.prefix = len(before) + patches
        core.language_model.config._attn_implementation = "packed"
        core.vision_tower.config._attn_implementation = "full"

    def forward(self, batch: dict[str, torch.Tensor]) -> Outcome:
        core = self.llava.model
        vision = core.vision_tower(batch["pixel_values"], output_hidden_states=True)
        told = self.head(core.vision_tower.post_layernorm(vision.last_hidden_state)[:, 1:])
        patch_loss, right_patches = _patches(told.float(), batch["patch_labels"])
        nothing = torch.zeros(())
        if "input_ids" not in batch:
            return Outcome(patch_loss, nothing, nothing, right_patches, nothing.bool()[None, None])
        features = core.multi_modal_projector(vision.hidden_states[-2][:, 1:])
        hidden, halfway = self._read(features, batch["input_ids"], batch["places"])
        labels = batch["labels"]
        asked = labels != -100
        logits = self.llava.lm_head(hidden[asked]).float()
        wrong = torch.zeros_like(labels, dtype=torch.bool)
        wrong[asked] = logits.argmax(-1) != labels[asked]
        loss = F.cross_entropy(logits, labels[asked])
        name_loss = self._name_loss(halfway, batch["named"])
        return Outcome(patch_loss, loss, name_loss, right_patches, ~wrong.any(-1))

    def _name_loss(self, halfway: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss from the hidden states ``[B, Q, SEGMENT, C]`` and labels ``[B, Q, SEGMENT, 5]``."""
        ends = (labels != -100).any(-1)
        told = self.name_head(halfway[ends]).float().split(HALFWAY, -1)
        losses = [
            F.cross_entropy(scores, wanted, ignore_index=-100, reduction="sum")
            for scores, wanted in zip(told, labels[ends].unbind(-1), strict=True)
        ]
        return torch.stack(losses).sum() / (labels != -100).sum()

    def _read(
        self, features: torch.Tensor, input_ids: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states of the questions ``[B, Q, SEGMENT, C]``, and those halfway up.

        Each question stands right after the picture.

        Args:
            features: Visual tokens ``[B, P, C]``.
            input_ids: ``[B, Q, SEGMENT]``.
            places: Positions of the visual tokens, from 0: ``[B, P]``.
        """
        core = self.llava.model.language_model
        batch, questions, _ = input_ids.shape
        before = core.embed_tokens(self.before).expand(batch, -1, -1)
        text = core.embed_tokens(input_ids.flatten(1))
        inputs = torch.cat([before, features.to(text.dtype), text], dim=1)
        first = torch.arange(len(self.before), device=inputs.device).expand(batch, -1)
        visual = len(self.before) + places
        rest = torch.arange(1, SEGMENT + 1, device=inputs.device).repeat(questions)
        positions = torch.cat([first, visual, visual[:, -1:] + rest], dim=1)
        out = core(
            inputs_embeds=inputs,
            position_ids=positions,
            attention_mask=inputs.new_zeros(1, 1, 1, 1),  # four dimensions: taken as it is
            use_cache=False,
            output_hidden_states=True,
        )
        last, halfway = (
            states[:, self.prefix :].unflatten(1, (questions, SEGMENT))
            for states in (out.last_hidden_state, out.hidden_states[LAYERS // 2])
        )
        return last, halfway


def _patches(told: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and share of right patches from ``told [B, P, sum(LABELS)]`` and ``labels [B, P, 6]``."""
    loss = told.new_zeros(())
    right = torch.ones_like(labels[..., 0], dtype=torch.bool)
    for part, (scores, classes) in enumerate(zip(told.split(LABELS, -1), LABELS, strict=True)):
        weight = torch.ones(classes, device=told.device)
        weight[0] = _NOTHING
        loss = loss + F.cross_entropy(scores.flatten(0, 1), labels[..., part].flatten(), weight=weight)
        right &= scores.argmax(-1) == labels[..., part]
    something = labels.any(-1)
    return loss, (right & something).sum() / something.sum().clamp(min=1)


def stretched(weights: dict[str, torch.Tensor], image_size: int) -> dict[str, torch.Tensor]:
    """Weights for pictures of another size: position embeddings are interpolated to its grid."""
    name = next(name for name in weights if name.endswith("position_embedding.weight"))
    old, side = weights[name], image_size // PATCH
    before = math.isqrt(len(old) - 1)
    grid = old[1:].T.reshape(1, -1, before, before)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return weights | {name: torch.cat([old[:1], grid.flatten(2)[0].T])}  # the first is CLS
