"""The model during training: the Hugging Face modules, packed questions, and two heads for practice."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from models.training import attention  # noqa: F401  (registers itself)
from models.training.packing import SEGMENT

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


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Classes that the two heads tell apart.

    Attributes:
        patch: Of each patch, class 0 being nothing.
        halfway: Of a name, at its last token.
        layer: Decoder layers below the second head; half of them by default.
    """

    patch: tuple[int, ...]
    halfway: tuple[int, ...]
    layer: int | None = None


class Student(nn.Module, ABC):
    """A LLaVA and two heads: one tells what each patch shows, one what a question's names stand for.

    The first reads the tower's last layer. The second reads the last token of each name in the middle
    of the language model: to answer, it must have found what is named first.

    Args:
        llava: The model.
        before: Token ids before the picture ``[n]``.
        heads: What the heads tell.
    """

    def __init__(self, llava: PreTrainedModel, before: torch.Tensor, heads: Heads) -> None:
        super().__init__()
        self.llava, self.heads = llava, heads
        vision, text = llava.config.vision_config, llava.config.text_config
        self.head = nn.Linear(vision.hidden_size, sum(heads.patch))
        self.name_head = nn.Linear(text.hidden_size, sum(heads.halfway))
        self.register_buffer("before", before, persistent=False)
        core = self.llava.model
        core.language_model.config._attn_implementation = "packed"
        core.vision_tower.config._attn_implementation = "full"

    @abstractmethod
    def see(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The tower's last states ``[B, patches, C]`` and the visual tokens ``[B, V, C]``."""

    def forward(self, batch: dict[str, torch.Tensor]) -> Outcome:
        states, features = self.see(batch)
        patch_loss, right_patches = self._patches(self.head(states).float(), batch["patch_labels"])
        nothing = torch.zeros(())
        if "input_ids" not in batch:
            return Outcome(patch_loss, nothing, nothing, right_patches, nothing.bool()[None, None])
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
        """Loss from the hidden states ``[B, Q, SEGMENT, C]`` and labels ``[B, Q, SEGMENT, classes]``."""
        ends = (labels != -100).any(-1)
        told = self.name_head(halfway[ends]).float().split(self.heads.halfway, -1)
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
            features: Visual tokens ``[B, V, C]``.
            input_ids: ``[B, Q, SEGMENT]``.
            places: Positions of the visual tokens, from 0: ``[B, V]`` or longer.
        """
        core = self.llava.model.language_model
        batch, questions, _ = input_ids.shape
        places = places[:, : features.shape[1]]
        core.config.prefix = prefix = len(self.before) + features.shape[1]
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
        layer = self.heads.layer or core.config.num_hidden_layers // 2
        last, halfway = (
            states[:, prefix:].unflatten(1, (questions, SEGMENT))
            for states in (out.last_hidden_state, out.hidden_states[layer])
        )
        return last, halfway

    def _patches(self, told: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and share of right patches from ``told [B, P, sum]`` and ``labels [B, P, classes]``."""
        loss = told.new_zeros(())
        right = torch.ones_like(labels[..., 0], dtype=torch.bool)
        for part, scores in enumerate(told.split(self.heads.patch, -1)):
            weight = torch.ones(scores.shape[-1], device=told.device)
            weight[0] = _NOTHING
            loss = loss + F.cross_entropy(scores.flatten(0, 1), labels[..., part].flatten(), weight=weight)
            right &= (scores.argmax(-1) == labels[..., part]) | (labels[..., part] < 0)
        something = (labels > 0).any(-1)
        return loss, (right & something).sum() / something.sum().clamp(min=1)
