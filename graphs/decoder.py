"""The prefill and decode graphs: a decoder of Llama's kind with the stages of a schedule inside.

Prefill runs all layers on one prompt; where the schedule has a stage, the visual
tokens are scored and the best stay for the layers behind it. Decode runs one token
per sequence, or a few, against the groups of KV caches that this leaves, one length
for each group. Inputs and outputs: `star_export.contract`.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_export.contract import ALWAYS_KEPT
from star_export.graphs.layers import (
    ACTIVATIONS,
    Linear,
    RMSNorm,
    as_dtype,
    merge_heads,
    multiply,
    split_heads,
)
from star_export.graphs.ops import cache_write, topk_gather
from star_export.graphs.proportional import as_cache, at_places, biased, causal, regrouped
from star_export.graphs.scores import DECODER_SCORES, LayerView, better
from star_export.specs import ExportSpec, TextSpec

KVCache = tuple[Tensor, Tensor]


class RotaryTables(nn.Module):
    """cos and sin of every position's angles, ``[positions, D/2]`` each."""

    def __init__(self, positions: int, head_dim: int) -> None:
        super().__init__()
        self.cos = nn.Buffer(torch.empty(positions, head_dim // 2))
        self.sin = nn.Buffer(torch.empty(positions, head_dim // 2))

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Rotate ``x [B, H, S, D]`` by the angles of ``position_ids [B, S]``."""
        return torch.onnx.ops.rotary_embedding(x, self.cos, self.sin, position_ids)


class DecoderAttention(nn.Module):
    """Projections of one attention layer."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.heads, self.kv_heads = spec.num_heads, spec.num_kv_heads
        self.q_proj = Linear(width, spec.num_heads * spec.head_dim, bias=spec.q_bias)
        self.k_proj = Linear(width, spec.num_kv_heads * spec.head_dim, bias=spec.k_bias)
        self.v_proj = Linear(width, spec.num_kv_heads * spec.head_dim, bias=spec.v_bias)
        self.o_proj = Linear(spec.num_heads * spec.head_dim, width, bias=spec.o_bias)

    def project(self, x: Tensor, rotary: RotaryTables, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated query ``[B, H, S, D]``, rotated key and value ``[B, Hkv, S, D]``, as the caches' type."""
        q, k, v = (as_dtype(f(x), rotary.cos.dtype) for f in (self.q_proj, self.k_proj, self.v_proj))
        q = rotary(split_heads(q, self.heads), position_ids)
        k = rotary(split_heads(k, self.kv_heads), position_ids)
        return q, k, split_heads(v, self.kv_heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fused attention, causal when no mask is given; ``[B, S, C]`` after the output projection."""
        attended = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, enable_gqa=self.heads != self.kv_heads
        )
        return self.o_proj(merge_heads(attended))


class DecoderMLP(nn.Module):
    """Gated MLP."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.act = ACTIVATIONS[spec.hidden_act]
        self.gate_proj = Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.up_proj = Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.down_proj = Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm block whose attention reads and writes a static KV cache."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = DecoderAttention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = DecoderMLP(spec)

    def prefill(
        self, x: Tensor, rotary: RotaryTables, position_ids: Tensor, cache: KVCache, mask: Tensor | None
    ) -> tuple[Tensor, KVCache, tuple[Tensor, Tensor]]:
        """Causal attention over ``x [1, S, C]`` itself; also returns its query and key.

        ``mask [1, 1, S, S]`` is causal, and says what is added where.
        """
        q, k, v = self.self_attn.project(self.input_layernorm(x), rotary, position_ids)
        start = torch.zeros(1, dtype=torch.int64)
        present = cache_write(cache[0], k, start), cache_write(cache[1], v, start)
        return self._finish(x, self.self_attn.attend(q, k, v, mask)), present, (q, k)

    def decode(
        self,
        x: Tensor,
        rotary: RotaryTables,
        position_ids: Tensor,
        cache: KVCache,
        lengths: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, KVCache]:
        """``C`` new tokens per sequence, ``x [B, C, W]``, behind ``lengths [B]`` cached ones.

        ``bias [B, 1, capacity, 1]`` is added where a cached token is looked at.
        """
        q, k, v = self.self_attn.project(self.input_layernorm(x), rotary, position_ids)
        present = cache_write(cache[0], k, lengths), cache_write(cache[1], v, lengths)
        # Each new token's slot. From position_ids, which ascend by one: TensorRT-RTX 1.7.1 fails on a range
        # as long as an input where two groups share it ("uses before defs").
        own = lengths[:, None] + position_ids - position_ids[:, :1]
        visible = (torch.arange(cache[0].shape[2]) <= own[..., None])[:, None]  # [B, 1, C, capacity]
        mask = visible if bias is None else biased(visible, bias.transpose(2, 3))
        return self._finish(x, self.self_attn.attend(q, *present, mask)), present

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)


class SharedHead(nn.Module):
    """A head without weights of its own."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return multiply(x, weight)


class Decoder(nn.Module):
    """Parameters of the decoder, shared by both graphs."""

    def __init__(self, spec: ExportSpec) -> None:
        super().__init__()
        text = spec.model.text
        self.language_model = LanguageModel(text)
        self.shared_head = spec.shared_head
        self.lm_head: nn.Module = SharedHead()
        if not spec.shared_head:
            self.lm_head = Linear(text.hidden_size, text.vocab_size, bias=False)
        self.rotary = RotaryTables(spec.groups[0].capacity, text.head_dim)

    def layers(self) -> Iterator[tuple[int, DecoderLayer]]:
        """Every layer with its number; `star_export.graphs.alike` may leave some out."""
        for number, layer in self.language_model.layers.named_children():
            yield int(number), cast("DecoderLayer", layer)

    def logits(self, last: Tensor) -> Tensor:
        """float32 logits ``[B, vocab]`` behind the last token, ``[B, C]``."""
        shared = (self.language_model.embed_tokens.weight,) if self.shared_head else ()
        return as_dtype(self.lm_head(self.language_model.norm(last), *shared), torch.float32)


class PrefillGraph(Decoder):
    """Prompt and visual tokens in; logits, KV caches and the kept positions out."""

    def __init__(self, spec: ExportSpec) -> None:
        super().__init__(spec)
        self.stages = {
            stage.after_layer: (number, DECODER_SCORES[stage.score])
            for number, stage in enumerate(spec.decoder_stages)
        }
        self.mass = spec.schedule[-1].mass if spec.schedule else None
        self.proportional = spec.proportional

    def forward(
        self,
        input_ids: Tensor,
        image_features: Tensor,
        image_positions: Tensor,
        query_positions: Tensor | None = None,
        stage_slots: Sequence[Tensor] = (),
        *,
        past_key_values: list[Tensor],
        past_key_bias: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        x = self.language_model.embed_tokens(input_ids)
        features, bias, mask = image_features, None, None
        if self.proportional:
            features = image_features[..., :-1]
            logs = as_dtype(image_features[..., -1], torch.float32)
            bias = at_places(logs, image_positions, x.shape[1])
            mask = causal(bias, self.rotary.cos.dtype)
        rows = image_positions[..., None].expand(features.shape)
        x = x.scatter(1, rows, as_dtype(features, x.dtype))  # [1, S, C]
        positions = torch.arange(x.shape[1])[None]  # [1, S]
        visual, query_rows = image_positions, query_positions
        kept: list[Tensor] = []
        presents: list[Tensor] = []
        biases = [] if bias is None else [bias]
        end = None
        caches = iter(past_key_values)
        for index, layer in self.layers():
            cache = next(caches), next(caches)
            before = x
            x, present, (query, key) = layer.prefill(x, self.rotary, positions, cache, mask)
            presents += present
            if index + 1 in self.stages and query_rows is not None:
                number, score = self.stages[index + 1]
                view = LayerView(query, key, before, x, query_rows, visual, bias)
                found = score(view)
                scores, total = always_keeping_text(found, visual, x.shape[1]), found.sum()
                text_slots = input_ids[0, image_positions.shape[1] :]  # all text stays
                every, places = x, visual
                x, rows = topk_gather(x, scores, torch.cat([text_slots, stage_slots[number]]))
                if bias is not None or number + 1 < len(stage_slots):
                    visual, query_rows = moved(visual, query_rows, rows, scores, stage_slots[number])
                if bias is not None:
                    bias = regrouped(bias, every, places, x, visual)
                    mask = causal(bias, self.rotary.cos.dtype)
                    biases.append(bias)
                positions = positions.gather(1, rows) if kept else rows
                kept.append(positions)
                if self.mass is not None and number + 1 == len(stage_slots):
                    chosen = scores.gather(1, rows)
                    x, positions, kept[-1], end = fewest(x, positions, chosen, total, self.mass)
        last = x[:, -1] if end is None else x.index_select(1, end)[:, 0]
        start = torch.zeros(1, dtype=torch.int64)
        for past, added in zip(past_key_bias, biases, strict=True):
            presents.append(cache_write(past, as_cache(added, past.dtype), start))
        return (self.logits(last), *kept, *presents)


class DecodeGraph(Decoder):
    """Tokens of each sequence in, the logits after the last out; caches grow by as many."""

    def __init__(self, spec: ExportSpec) -> None:
        super().__init__(spec)
        self.groups = [spec.group(layer) for layer in range(spec.model.text.num_layers)]

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        lengths: Sequence[Tensor],
        *,
        past_key_values: list[Tensor],
        past_key_bias: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        x = self.language_model.embed_tokens(input_ids)  # [B, C, W]
        biases = [
            cache_write(cache, as_cache(torch.zeros_like(position_ids), cache.dtype), length)
            for cache, length in zip(past_key_bias, lengths, strict=False)
        ]
        presents: list[Tensor] = []
        caches = iter(past_key_values)
        for index, layer in self.layers():
            cache, group = (next(caches), next(caches)), self.groups[index]
            bias = biases[group] if biases else None
            x, present = layer.decode(x, self.rotary, position_ids, cache, lengths[group], bias)
            presents += present
        return (self.logits(x[:, -1]), *presents, *biases)


def always_keeping_text(scores: Tensor, visual: Tensor, tokens: int) -> Tensor:
    """Scores ``[1, V]`` at ``visual [1, V]``, places among all tokens, elsewhere :data:`ALWAYS_KEPT`."""
    return scores.new_full((1, tokens), ALWAYS_KEPT).scatter(1, visual, scores)


def fewest(
    x: Tensor, positions: Tensor, scores: Tensor, total: Tensor, mass: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of chosen tokens the fewest whose scores reach a part of all; the others go behind them.

    Sizes stay what they are: what goes behind the last token is seen by none before it, and its place in the
    KV caches is written over by the next token.

    Args:
        x: ``[1, K, C]``.
        positions: int64 ``[1, K]``.
        scores: float32 ``[1, K]``, :data:`ALWAYS_KEPT` of text.
        total: The sum of the scores of all visual tokens, chosen or not.
        mass: What part of it is to be reached.

    Returns:
        Both in the new order; the positions once more, -1 where a token went behind; int64 ``[1]``, the
        place of the last that did not.
    """
    order = torch.arange(x.shape[1])
    visual = scores[0] < ALWAYS_KEPT
    before = torch.where(better(scores[0]) & visual, scores[0], 0.0).sum(dim=-1)  # [K]
    stays = ~visual | (before < mass * total)
    keys = torch.where(stays, order, order + x.shape[1])
    places = keys.topk(x.shape[1], largest=False).indices
    kept = torch.where(stays, positions[0], -1)[places][None]
    last = as_dtype(stays, torch.int64).sum()[None] - 1
    return x[:, places], positions[:, places], kept, last


def moved(
    visual: Tensor, query_rows: Tensor, kept: Tensor, scores: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor]:
    """Where visual tokens and query rows are after a stage.

    Args:
        visual: int64 ``[1, V]``, places of the visual tokens before it.
        query_rows: int64 ``[1, Q]``, places of the query rows, all behind the visual tokens.
        kept: int64 ``[1, S']``, places before it of the tokens that it kept, ascending.
        scores: float32 ``[1, S]``, any of the sequence before it.
        slots: int64 ``[N]``, the visual tokens that it kept.

    Returns:
        Their places among the kept tokens, int64 ``[1, N]`` and ``[1, Q]``.
    """
    is_visual = torch.zeros_like(scores).scatter(1, visual, torch.ones_like(visual, dtype=scores.dtype))
    is_visual = is_visual.gather(1, kept)  # [1, S']
    _, places = topk_gather(is_visual[..., None], is_visual, slots)
    return places, query_rows - (visual.shape[1] - slots.shape[0])
