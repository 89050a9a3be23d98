"""The PyTorch reference against Hugging Face's own forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from star_export.checkpoint.tensors import canonical_name
from star_export.errors import CheckpointError
from star_export.validation.reference import PrefillReference, Reference, VisionReference

PATCHES = 576
BEFORE, AFTER = [1, 77, 300], [31, 5, 6, 400, 222]
IMAGE_TOKEN = 4


@dataclass(frozen=True)
class Sides:
    reference: Reference
    model: LlavaForConditionalGeneration
    pixels: Tensor

    @property
    def pictures(self) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels}

    @property
    def seen(self) -> VisionReference:
        return self.reference.encode_images(self.pictures)[0]

    @property
    def input_ids(self) -> Tensor:
        return torch.tensor(BEFORE + PATCHES * [IMAGE_TOKEN] + AFTER)

    @property
    def image_positions(self) -> Tensor:
        return torch.arange(len(BEFORE), len(BEFORE) + PATCHES)

    @property
    def query_positions(self) -> Tensor:
        return torch.arange(len(BEFORE) + PATCHES, len(self.input_ids))

    def prefill(self, **options: object) -> PrefillReference:
        features = self.seen.features
        return self.reference.prefill(
            self.input_ids, features, self.image_positions, self.query_positions, **options
        )

    @torch.no_grad()
    def forward(self, *new_tokens: int) -> Tensor:
        ids = torch.cat([self.input_ids, torch.tensor(new_tokens, dtype=torch.int64)])[None]
        return self.model(input_ids=ids, pixel_values=self.pixels).logits[0]


@pytest.fixture(scope="module", params=["mha", "gqa"])
def sides(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Sides:
    folder = checkpoint(request.param)
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    return Sides(Reference(folder), model, pixels)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_features_are_hugging_faces(sides: Sides) -> None:
    with torch.no_grad():
        expected = sides.model.get_image_features(sides.pixels).pooler_output[0]
    found = sides.seen
    assert found.scores.shape == (PATCHES,)
    close(found.features, expected)


def test_stage1_scores_are_attention_received(sides: Sides) -> None:
    tower = sides.reference.model.model.vision_tower
    last = tower.encoder.layers[-2]  # its output is hidden_states[-2]
    maps: list[Tensor] = []
    hook = last.self_attn.register_forward_hook(lambda _m, _i, output: maps.append(output[1]))
    scores = sides.seen.scores
    hook.remove()
    heads = maps[0][0]  # [H, 1+P, 1+P], rows sum to 1
    expected = [sum(heads[:, 1:, 1 + i].flatten()) / heads[:, 1:, 0].numel() for i in range(0, PATCHES, 50)]
    torch.testing.assert_close(scores[::50], torch.stack(expected).detach(), rtol=1e-5, atol=0)
    assert scores.std() > 0.1 * scores.mean()  # not the printed formula's constant 1/L


def test_unpruned_logits_are_hugging_faces(sides: Sides) -> None:
    found = sides.prefill()
    assert found.scores == ()
    assert found.length == len(sides.input_ids)
    assert torch.equal(found.kept_positions, torch.arange(found.length))
    close(found.logits, sides.forward()[-1])


def test_unpruned_decoding_is_hugging_faces(sides: Sides) -> None:
    state, tokens = sides.prefill(), (7, 250, 250, 33)
    found = [sides.reference.decode(state, token) for token in tokens]
    close(torch.stack(found), sides.forward(*tokens)[-4:])


def test_generate_is_greedy(sides: Sides) -> None:
    found = sides.reference.generate(sides.input_ids, sides.pictures, max_new_tokens=5)
    state = sides.prefill()
    logits, tokens = state.logits, []
    for _ in range(5):
        tokens.append(int(logits.argmax()))
        logits = sides.reference.decode(state, tokens[-1])
    assert found == tokens


def test_generate_stops_at_the_ends_that_it_is_given(sides: Sides) -> None:
    whole = sides.reference.generate(sides.input_ids, sides.pictures, max_new_tokens=5)
    ended = sides.reference.generate(
        sides.input_ids, sides.pictures, max_new_tokens=5, end_token_ids=[500, whole[2]]
    )
    assert ended == whole[: whole.index(whole[2]) + 1]


def test_keeping_every_token_changes_nothing(sides: Sides) -> None:
    unpruned = sides.prefill()
    every = torch.arange(unpruned.length)
    for layer in (1, len(sides.reference.decoder.layers) - 1):
        kept = sides.prefill(stages=[(layer, every)])
        close(kept.logits, unpruned.logits)
        for a, b in zip(kept.cache.layers, unpruned.cache.layers, strict=True):
            close(a.keys, b.keys)
            close(a.values, b.values)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_stage2_scores_are_text_to_image_attention(sides: Sides, layer: int) -> None:
    with torch.no_grad():
        output = sides.reference.model(
            input_ids=sides.input_ids[None], pixel_values=sides.pixels, output_attentions=True
        )
    attention = output.attentions[layer - 1][0]  # layer K-1 is the last full one
    expected = attention[:, sides.query_positions].mean(1).mean(0)[sides.image_positions]
    (found,) = sides.prefill(stages=[(layer, torch.arange(len(sides.input_ids)))]).scores
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


def kept_positions(sides: Sides, visual: int) -> Tensor:
    chosen = torch.linspace(len(BEFORE), len(BEFORE) + PATCHES - 1, visual).long()
    text = torch.cat([torch.arange(len(BEFORE)), sides.query_positions])
    return torch.cat([text, chosen]).sort().values


def test_late_layers_hold_only_the_kept_tokens(sides: Sides) -> None:
    kept = kept_positions(sides, 40)
    state = sides.prefill(stages=[(2, kept)])
    full, late = len(sides.input_ids), 40 + len(BEFORE + AFTER)
    layers = state.cache.layers
    assert [c.keys.shape[2] for c in layers] == 2 * [full] + (len(layers) - 2) * [late]
    sides.reference.decode(state, 9)
    assert [c.keys.shape[2] for c in layers] == 2 * [full + 1] + (len(layers) - 2) * [late + 1]
    assert state.length == full + 1


def test_pruning_equals_masking_the_dropped_keys(sides: Sides) -> None:
    # Kept tokens keep their positions, so dropping keys and hiding them are the same.
    kept, layer, length = kept_positions(sides, 40), 2, len(sides.input_ids)
    visible = torch.zeros(length, dtype=torch.bool)
    visible[kept] = True
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    masks = [torch.where(m, 0.0, torch.finfo(torch.float32).min) for m in (causal, causal & visible)]
    features = sides.seen.features
    decoder = sides.model.model.language_model
    with torch.no_grad():
        x = decoder.embed_tokens(sides.input_ids)[None].clone()
        x[0, sides.image_positions] = features
        rotary = decoder.rotary_emb(x, torch.arange(length)[None])
        for index, block in enumerate(decoder.layers):
            mask = masks[index >= layer][None, None]
            x = block(x, attention_mask=mask, position_embeddings=rotary)
        expected = sides.model.lm_head(decoder.norm(x[0, -1]))
    found = sides.prefill(stages=[(layer, kept)]).logits
    close(found, expected)
    assert (found - sides.prefill().logits).abs().max() > 0.01  # the dropped tokens did count


def test_a_second_stage_chooses_among_what_the_first_left(sides: Sides) -> None:
    first = kept_positions(sides, 40)
    second = torch.cat([first[:10], first[-20:]])  # text and some of the visual tokens
    found = sides.prefill(stages=[(1, first), (3, second)])
    text = len(BEFORE + AFTER)
    assert [len(scores) for scores in found.scores] == [PATCHES, 40]
    assert torch.equal(found.kept_positions, second)
    lengths = [len(sides.input_ids), text + 40, text + 40, *[len(second)] * (len(found.cache.layers) - 3)]
    assert [c.keys.shape[2] for c in found.cache.layers] == lengths
    # To keep at the second stage what the first kept is to have no second stage.
    again = sides.prefill(stages=[(1, first), (3, first)])
    close(again.logits, sides.prefill(stages=[(1, first)]).logits)
    close(again.scores[0], found.scores[0])


def test_weights_are_rounded_first(checkpoint: Callable[[str], Path]) -> None:
    exact, rounded = (Reference(checkpoint("mha")) for _ in range(2))
    kept = ("language_model.layers.1.", "vision_tower.encoder.layers.0.", "lm_head.")
    rounded.round_weights(lambda name: "float32" if name.startswith(kept) else "bfloat16")
    weights = dict(rounded.model.named_parameters())
    left = [name for name, weight in exact.model.named_parameters() if torch.equal(weight, weights[name])]
    for name, weight in exact.model.named_parameters():
        assert weights[name].dtype == torch.float32
        expected = weight if name in left else weight.bfloat16().float()
        assert torch.equal(weights[name], expected)
    assert {canonical_name(name, "llava").startswith(kept) for name in left} == {True}
    assert len(left) == 9 + 16 + 1


def test_tied_weights_are_rounded_apart(checkpoint: Callable[[str], Path]) -> None:
    reference = Reference(checkpoint("gqa"))
    embedding = reference.decoder.embed_tokens.weight
    assert reference.model.lm_head.weight is embedding
    reference.round_weights(lambda name: "float32" if name == "lm_head.weight" else "float16")
    assert torch.equal(reference.model.lm_head.weight, embedding)
    assert torch.equal(reference.decoder.embed_tokens.weight, embedding.half().float())


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors; only safetensors weights are read"):
        Reference(tmp_path)
