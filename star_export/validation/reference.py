"""STAR in plain PyTorch, on the Hugging Face model itself.

The independent side of the parity check: transformers' own modules with eager
attention in float32, driven layer by layer. It shares no code with the modules
that are exported, and can be told which tokens to keep, so that one differing
choice neither hides nor causes later differences.
"""

import inspect
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache, GenerationConfig

from star_export.checkpoint.folder import INDEX, find_shards
from star_export.checkpoint.tensors import canonical_name
from star_export.errors import CheckpointError
from star_export.files import write_json


@dataclass(frozen=True)
class VisionReference:
    """Stage 1 as PyTorch sees it.

    Attributes:
        features: Projected features of every patch, ``[P, C]``.
        scores: Attention each patch receives, ``[P]``.
    """

    features: Tensor
    scores: Tensor


@dataclass
class PrefillReference:
    """The stages inside the decoder as PyTorch sees them.

    Attributes:
        scores: Per stage, text-to-image attention of each visual token that came to it ``[V]``.
        kept_positions: Positions the last layers saw, ascending ``[S2]``.
        logits: ``[vocab]`` at the last position.
        cache: Keys and values of every layer.
        length: Prompt length, the position of the next token.
    """

    scores: tuple[Tensor, ...]
    kept_positions: Tensor
    logits: Tensor
    cache: DynamicCache
    length: int


def cache_argument(module: torch.nn.Module) -> str:
    """What a module of transformers calls its KV cache: ``past_key_values`` in its older versions."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def greedy(settings: GenerationConfig) -> GenerationConfig:
    """Of a checkpoint's generation settings those that a bundle has too: its tokens."""
    return GenerationConfig(
        bos_token_id=settings.bos_token_id,
        eos_token_id=settings.eos_token_id,
        pad_token_id=settings.pad_token_id,
        do_sample=False,
    )


def load_model(folder: Path, *, dtype: torch.dtype, attention: str) -> Any:
    """The checkpoint in transformers; shards may lack their index.

    Raises:
        CheckpointError: If transformers cannot load it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source, shards = folder, find_shards(folder)
        if len(shards) > 1 and not (folder / INDEX).is_file():
            source = Path(scratch)
            _write_index(source, shards)
            for name in ("config.json", "generation_config.json"):
                if (folder / name).is_file():
                    shutil.copy(folder / name, source)
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                source, dtype=dtype, attn_implementation=attention, local_files_only=True
            )
        except Exception as error:  # transformers raises many unrelated types
            raise CheckpointError(f"transformers cannot load {folder}: {error}") from error
    return model.eval()


def _write_index(folder: Path, shards: list[Path]) -> None:
    """An index in ``folder`` of shards that stay where they are."""
    places: dict[str, str] = {}
    for path in shards:
        with safe_open(path, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), str(path.resolve()))
    write_json(folder / INDEX, {"metadata": {}, "weight_map": places})


class Reference:
    """A LLaVA model in float32 with STAR around it.

    Args:
        folder: Hugging Face checkpoint folder.

    Raises:
        CheckpointError: If transformers cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        self.model = load_model(folder, dtype=torch.float32, attention="eager")
        self.model.generation_config = greedy(self.model.generation_config)
        self.decoder = self.model.model.language_model
        self._cache_name = cache_argument(self.decoder.layers[0])

    @torch.no_grad()
    def round_weights(self, weight_dtype: Callable[[str], str]) -> None:
        """Round every weight as a bundle does; arithmetic stays in float32.

        Args:
            weight_dtype: Element type in the bundle of a tensor, by its name there.
        """
        for name, weight in list(self.model.named_parameters(remove_duplicate=False)):
            dtype = getattr(torch, weight_dtype(canonical_name(name, self.model.config.model_type)))
            if dtype != weight.dtype:
                module, _, leaf = name.rpartition(".")
                # A new parameter: tied weights are two in a bundle, and may be rounded differently.
                rounded = torch.nn.Parameter(weight.to(dtype).float(), requires_grad=False)
                setattr(self.model.get_submodule(module), leaf, rounded)

    @torch.no_grad()
    def encode_image(self, pixel_values: Tensor) -> VisionReference:
        """Features and stage-1 scores of ``pixel_values [1, 3, H, W]``."""
        layer = self.model.config.vision_feature_layer
        output = self.model.model.vision_tower(
            pixel_values, output_hidden_states=True, output_attentions=True
        )
        states = output.hidden_states
        producer = (layer if layer >= 0 else len(states) + layer) - 1  # the layer that wrote states[layer]
        attention = output.attentions[producer][0].float()  # [H, 1+P, 1+P]
        received = attention.mean(0)[1:, 1:].mean(0)  # CLS neither asks nor is asked
        features = self.model.model.multi_modal_projector(states[layer][0, 1:])
        return VisionReference(features, received)

    @torch.no_grad()
    def prefill(
        self,
        input_ids: Tensor,
        features: Tensor,
        image_positions: Tensor,
        query_positions: Tensor,
        *,
        stages: Sequence[tuple[int, Tensor]] = (),
    ) -> PrefillReference:
        """Run the prompt, leaving out visual tokens at every stage.

        Args:
            input_ids: ``[S]``.
            features: Visual tokens ``[V, C]``.
            image_positions: Their places ``[V]``.
            query_positions: Text tokens after the last image ``[Q]``.
            stages: Of each stage inside the decoder, in order, the layers that run before it and the
                positions that it keeps ``[S2]``, ascending.
        """
        x = self.decoder.embed_tokens(input_ids)[None].clone()
        x[0, image_positions] = features
        cache, layers = DynamicCache(config=self.model.config.text_config), self.decoder.layers
        positions, first, scores = torch.arange(len(input_ids)), 0, []
        for after_layer, kept in stages:
            x, attention = self._run(layers[first:after_layer], x, positions, cache)
            asks, visual = (torch.isin(positions, places) for places in (query_positions, image_positions))
            scores.append(attention[0].float().mean(0)[asks].mean(0)[visual])
            x = x[:, torch.isin(positions, kept)]
            positions, first = kept, after_layer
        x, _ = self._run(layers[first:], x, positions, cache)
        return PrefillReference(tuple(scores), positions, self._logits(x), cache, len(input_ids))

    @torch.no_grad()
    def decode(self, state: PrefillReference, token: int) -> Tensor:
        """Append one token and return the logits ``[vocab]`` after it."""
        x = self.decoder.embed_tokens(torch.tensor([[token]]))
        x, _ = self._run(self.decoder.layers, x, torch.tensor([state.length]), state.cache)
        state.length += 1
        return self._logits(x)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        *,
        max_new_tokens: int,
        end_token_ids: Sequence[int] = (),
    ) -> list[int]:
        """Greedy tokens of ``LlavaForConditionalGeneration.generate``, unpruned.

        Args:
            input_ids: ``[S]`` with one image token per patch.
            pixel_values: ``[1, 3, H, W]``.
            max_new_tokens: Tokens to generate at most.
            end_token_ids: Tokens that end the answer; the model's own by default.
        """
        output = self.model.generate(
            input_ids=input_ids[None],
            pixel_values=pixel_values,
            attention_mask=torch.ones_like(input_ids)[None],
            max_new_tokens=max_new_tokens,
            eos_token_id=list(end_token_ids) or None,
        )
        return [int(token) for token in output[0, len(input_ids) :]]

    def _run(self, layers: Any, x: Tensor, positions: Tensor, cache: DynamicCache) -> tuple[Tensor, Tensor]:
        """Run decoder layers causally; also the attention map ``[1, H, S, S]`` of the last one."""
        maps: list[Tensor] = []
        hook = layers[-1].self_attn.register_forward_hook(lambda _m, _i, output: maps.append(output[1]))
        rotary = self.decoder.rotary_emb(x, positions[None])
        mask = torch.full((len(positions), len(positions)), torch.finfo(x.dtype).min).triu(1)
        try:
            for layer in layers:
                x = layer(
                    x,
                    attention_mask=mask[None, None] if len(positions) > 1 else None,
                    position_ids=positions[None],
                    position_embeddings=rotary,
                    **{self._cache_name: cache},
                )
        finally:
            hook.remove()
        return x, maps[0]

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(self.decoder.norm(x[:, -1]))[0]
        return logits
