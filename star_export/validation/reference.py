"""STAR in plain PyTorch, on the Hugging Face model itself.

The independent side of the parity check: transformers' own modules with eager
attention in float32, driven layer by layer. It shares no code with the modules
that are exported, and can be told which tokens to keep, so that one differing
choice neither hides nor causes later differences.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.tensors import canonical_module, canonical_name
from star_export.graphs.quantize import dequantize, quantize
from star_export.graphs.unpack import packed_layer
from star_export.graphs.weights import torch_dtype
from star_export.specs import EMBEDDING, RECEIVED, TEXT, ExportSpec
from star_export.validation.loading import load_model
from star_export.validation.reference_scores import (
    LAYER_SCORES,
    PATCH_SCORES,
    LayerSeen,
    TilesSeen,
    stands_for,
)

#: Score of tokens that stage 1 always keeps: CLS and, of a share, newlines, which of a number go first.
STAYS = 1e30

#: What the model takes pictures as: ``pixel_values``, and ``image_sizes`` and ``batch_num_images`` where
#: its processor gives them.
Pictures = Mapping[str, Tensor]


@dataclass(frozen=True)
class VisionReference:
    """One picture before stage 1, as PyTorch sees it.

    Attributes:
        features: Its visual tokens, projected and packed, ``[P, C]``.
        scores: The score of each, ``[P]``; :data:`STAYS` or less that where it is no patch.
    """

    features: Tensor
    scores: Tensor

    @property
    def newlines(self) -> int:
        """How many of its tokens are no patches."""
        return int((self.scores.abs() == STAYS).sum())


@dataclass
class PrefillReference:
    """The stages inside the decoder as PyTorch sees them.

    Attributes:
        scores: Per stage, the score of each visual token that came to it ``[V]``.
        kept_positions: Positions the last layers saw, ascending ``[S2]``.
        logits: ``[vocab]`` at the last position.
        cache: Keys and values of every layer.
        length: Prompt length, the position of the next token.
        counts: Per stage, how many visual tokens each that it kept stands for ``[N]``.
        biases: Per layer group, the layers before its end, and what is added at its tokens, if anything.
    """

    scores: tuple[Tensor, ...]
    kept_positions: Tensor
    logits: Tensor
    cache: DynamicCache
    length: int
    counts: tuple[Tensor, ...]
    biases: tuple[tuple[int, Tensor | None], ...]


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


class Reference:
    """A LLaVA model in float32 with STAR around it.

    Args:
        folder: Hugging Face checkpoint folder.

    Raises:
        CheckpointError: If transformers cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
    def quantize_weights(self, spec: ExportSpec) -> None:
        """Put what a bundle of ``spec`` computes with in the place of each weight that it quantises."""
        if spec.quantization is None:
            return
        block, checkpoint = spec.quantization.block, open_checkpoint(str(self.folder.absolute()))
        for name, module in self.model.named_modules():
            stored = canonical_module(name, spec.model.model_type)
            if not isinstance(module, torch.nn.Linear) and stored != EMBEDDING:
                continue
            rows, inputs = module.weight.shape
            if (kind := spec.quantized(f"{stored}.weight", inputs)) is None:
                continue
            scales = torch_dtype(spec.weight_dtype(f"{stored}.weight"))
            layer = packed_layer(checkpoint, stored, inputs, rows)
            given = layer.blocks(block) if layer else quantize(module.weight.T, kind, block, scales)
            integers, scale, *zero = given
            values = dequantize(integers, scale.to(scales), *zero)
            module.weight = torch.nn.Parameter(values.T.contiguous(), requires_grad=False)

    @torch.no_grad()
    def encode_images(
        self, pictures: Pictures, *, score: str = RECEIVED, newline: float = STAYS
    ) -> tuple[VisionReference, ...]:
        """Visual tokens and stage-1 scores of each picture of a request.

        Behind the projector every token carries its score as one more channel, so that the model itself
        unpads, scales and packs both alike.

        Args:
            pictures: The pictures.
            score: Name of the score.
            newline: The score of newlines.
        """
        model, maps = self.model.model, list[Tensor]()
        with ExitStack() as stack:
            for module, hook in (
                (self._scoring_attention(), lambda _m, _i, output: maps.append(output[1])),
                (
                    model.multi_modal_projector,
                    lambda _m, _i, x: torch.cat([x, self._scores(score, maps[0], x)], -1),
                ),
            ):
                stack.callback(module.register_forward_hook(hook).remove)
            stack.enter_context(self._scored_newline(newline))
            packed = model.get_image_features(**pictures).pooler_output
        return tuple(VisionReference(tokens[:, :-1], tokens[:, -1]) for tokens in packed)

    def _scoring_attention(self) -> torch.nn.Module:
        """The attention in the layer that writes the last hidden state that is projected."""
        given, layers = (
            self.model.config.vision_feature_layer,
            self.model.config.vision_config.num_hidden_layers,
        )
        states = [n if n >= 0 else layers + 1 + n for n in ([given] if isinstance(given, int) else given)]
        suffix = f"encoder.layers.{max(states) - 1}.self_attn"
        modules: dict[str, torch.nn.Module] = dict(self.model.model.vision_tower.named_modules())
        (found,) = (module for name, module in modules.items() if name.endswith(suffix))
        return found

    def _scores(self, score: str, weights: Tensor, projected: Tensor) -> Tensor:
        """Of attention maps ``[T, H, N, N]`` and used tokens ``[T, U, C]`` scores ``[T, U, 1]``."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        cls, left_out = weights.shape[-1] - side**2, int(config.vision_feature_select_strategy == "default")
        first = max(cls, left_out)
        seen = TilesSeen(weights.float(), first, projected[:, first - left_out :].float())
        return torch.nn.functional.pad(PATCH_SCORES[score](seen), (first - left_out, 0), value=STAYS)[
            ..., None
        ]

    @contextmanager
    def _scored_newline(self, score: float) -> Iterator[None]:
        """The newline, where the family has one, with its score as one more channel."""
        model = self.model.model
        newline = getattr(model, "image_newline", None)
        if newline is not None:
            model.image_newline = torch.nn.Parameter(torch.cat([newline, newline.new_tensor([score])]))
        try:
            yield
        finally:
            if newline is not None:
                model.image_newline = newline

    @torch.no_grad()
    def prefill(
        self,
        input_ids: Tensor,
        features: Tensor,
        image_positions: Tensor,
        query_positions: Tensor,
        *,
        stages: Sequence[tuple[int, Tensor]] = (),
        scores: Sequence[str] = (),
        biases: Sequence[Tensor] = (),
    ) -> PrefillReference:
        """Run the prompt, leaving out visual tokens at every stage.

        Args:
            input_ids: ``[S]``.
            features: Visual tokens ``[V, C]``.
            image_positions: Their places ``[V]``.
            query_positions: Text tokens after the last image ``[Q]``.
            stages: Of each stage inside the decoder, in order, the layers that run before it and the
                positions that it keeps ``[S2]``, ascending.
            scores: Name of each stage's score; STAR's by default.
            biases: Per layer group, what proportional attention adds at each of its tokens.
        """
        x = self.decoder.embed_tokens(input_ids)[None].clone()
        x[0, image_positions] = features
        cache, layers = DynamicCache(), self.decoder.layers  # every key stays: no window is left
        positions, first, found, counts = torch.arange(len(input_ids)), 0, [], []
        ends = [*(after_layer for after_layer, _ in stages), len(layers)]
        added = tuple((end, biases[group] if biases else None) for group, end in enumerate(ends))
        for number, (after_layer, kept) in enumerate(stages):
            score, bias = scores[number] if scores else TEXT, added[number][1]
            x, before, attention = self._run(layers[first:after_layer], x, positions, cache, bias)
            asks, visual = (torch.isin(positions, places) for places in (query_positions, image_positions))
            keys = cache.layers[after_layer - 1].keys
            seen = LayerSeen(
                attention[0].float()[:, asks][..., visual],
                before[0, visual],
                x[0, visual],
                keys[0, :, visual],
            )
            found.append(LAYER_SCORES[score](seen))
            if bias is not None:
                stays = torch.isin(positions[visual], kept)
                counts.append(stands_for(x[0, visual], stays, bias[visual].exp()))
            x = x[:, torch.isin(positions, kept)]
            positions, first = kept, after_layer
        x, _, _ = self._run(layers[first:], x, positions, cache, added[-1][1])
        logits = self._logits(x)
        return PrefillReference(tuple(found), positions, logits, cache, len(input_ids), tuple(counts), added)

    @torch.no_grad()
    def decode(self, state: PrefillReference, token: int) -> Tensor:
        """Append one token and return the logits ``[vocab]`` after it."""
        x = self.decoder.embed_tokens(torch.tensor([[token]]))
        positions, first = torch.tensor([state.length]), 0
        for end, bias in state.biases:
            x, _, _ = self._run(self.decoder.layers[first:end], x, positions, state.cache, bias)
            first = end
        state.length += 1
        return self._logits(x)

    @torch.no_grad()
    def forward(self, input_ids: Tensor, pictures: Pictures, *, rows: int) -> Tensor:
        """Logits of the whole model, unpruned, at the last rows of ``input_ids [S]``: ``[rows, vocab]``."""
        output = self.model(input_ids=input_ids[None], **pictures, logits_to_keep=rows)
        logits: Tensor = output.logits[0]
        return logits

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        pictures: Pictures,
        *,
        max_new_tokens: int,
        end_token_ids: Sequence[int] = (),
    ) -> list[int]:
        """Greedy tokens of the model's own ``generate``, unpruned.

        Args:
            input_ids: ``[S]`` with one image token per visual token.
            pictures: The pictures.
            max_new_tokens: Tokens to generate at most.
            end_token_ids: Tokens that end the answer; the model's own by default.
        """
        output = self.model.generate(
            input_ids=input_ids[None],
            attention_mask=torch.ones_like(input_ids)[None],
            max_new_tokens=max_new_tokens,
            eos_token_id=list(end_token_ids) or None,
            **pictures,
        )
        return [int(token) for token in output[0, len(input_ids) :]]

    def _run(
        self, layers: Any, x: Tensor, positions: Tensor, cache: DynamicCache, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run decoder layers causally; also what the last one got, and its attention map ``[1, H, S, S]``.

        ``bias`` is added at the first tokens that are looked at, nothing at those behind.
        """
        maps: list[Tensor] = []
        hook = layers[-1].self_attn.register_forward_hook(lambda _m, _i, output: maps.append(output[1]))
        rotary = self.decoder.rotary_emb(x, positions[None])
        seen = cache.get_seq_length(layers[0].self_attn.layer_idx)
        mask = torch.full((len(positions), seen + len(positions)), torch.finfo(x.dtype).min).triu(1 + seen)
        if bias is not None:
            mask = mask + torch.nn.functional.pad(bias, (0, mask.shape[1] - len(bias)))
        try:
            for layer in layers:
                before = x
                x = layer(
                    x,
                    attention_mask=mask[None, None] if len(positions) > 1 or bias is not None else None,
                    position_ids=positions[None],
                    position_embeddings=rotary,
                    **{self._cache_name: cache},
                )
        finally:
            hook.remove()
        return x, before, maps[0]

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(self.decoder.norm(x[:, -1]))[0]
        return logits
