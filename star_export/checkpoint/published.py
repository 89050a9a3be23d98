"""Shapes of the published checkpoints that have an alias: what plans need of them, without network."""

from star_export.specs import ModelSpec, TextSpec, Tiling, VisionSpec

_CLIP = VisionSpec(
    model_type="clip_vision_model", image_size=336, patch_size=14, hidden_size=1024, intermediate_size=4096,
    num_layers=23, num_heads=16, hidden_act="quick_gelu", layer_norm_eps=1e-5, feature_layers=(23,),
    has_cls=True, feature_select="default",
)  # fmt: skip
_SIGLIP = VisionSpec(
    model_type="siglip_vision_model", image_size=384, patch_size=14, hidden_size=1152, intermediate_size=4304,
    num_layers=26, num_heads=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, feature_layers=(26,),
    has_cls=False, feature_select="full",
)  # fmt: skip
_NEXT_TILES = Tiling(
    pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    max_grid=None,
    several_whole=False,
)
_ONEVISION_TILES = Tiling(
    pinpoints=tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)),
    max_grid=9,
    several_whole=True,
)


def _decoder(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    vocab: int,
    positions: int = 4096,
    theta: float = 1e4,
    eps: float = 1e-5,
    qkv_bias: bool = False,
    tied: bool = False,
) -> TextSpec:
    return TextSpec(
        hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=hidden // heads, vocab_size=vocab, hidden_act="silu",
        rms_norm_eps=eps, q_bias=qkv_bias, k_bias=qkv_bias, v_bias=qkv_bias, o_bias=False, mlp_bias=False,
        tie_word_embeddings=tied, max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, sliding_window=None,
    )  # fmt: skip


def _qwen(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, vocab: int, tied: bool = False
) -> TextSpec:
    sizes = (hidden, intermediate, layers, heads, kv_heads)
    return _decoder(*sizes, vocab=vocab, positions=32768, theta=1e6, eps=1e-6, qkv_bias=True, tied=tied)


_VICUNA_7B = _decoder(4096, 11008, 32, 32, 32, vocab=32064)
_VICUNA_13B = _decoder(5120, 13824, 40, 40, 40, vocab=32064)
_MISTRAL_7B = _decoder(4096, 14336, 32, 32, 8, vocab=32064, positions=32768, theta=1e6)
_YI_34B = _decoder(7168, 20480, 60, 56, 8, vocab=64064, theta=5e6)
_LLAMA3_8B = _decoder(4096, 14336, 32, 32, 8, vocab=128320, positions=8192, theta=5e5)
_QWEN15_05B = _qwen(1024, 2816, 24, 16, 16, vocab=152000, tied=True)
_QWEN15_7B = _qwen(4096, 11008, 32, 32, 32, vocab=152000)
_QWEN2_05B = _qwen(896, 4864, 24, 14, 2, vocab=152000, tied=True)
_QWEN2_7B = _qwen(3584, 18944, 28, 28, 4, vocab=152128)


def _llava(text: TextSpec, tiling: Tiling | None = None, *, image: int = 32000, eos: int = 2) -> ModelSpec:
    """LLaVA-1.5 and LLaVA-NeXT: CLIP."""
    return ModelSpec(
        model_type="llava" if tiling is None else "llava_next", vision=_CLIP, text=text,
        projector_act="gelu", projector_bias=True, image_token_id=image, eos_token_ids=(eos,), tiling=tiling,
    )  # fmt: skip


def _siglip(text: TextSpec, tiling: Tiling | None = None) -> ModelSpec:
    """LLaVA-Interleave and LLaVA-OneVision: SigLIP and a Qwen."""
    return ModelSpec(
        model_type="llava" if tiling is None else "llava_onevision", vision=_SIGLIP, text=text,
        projector_act="gelu", projector_bias=True, image_token_id=151646, eos_token_ids=(151645,),
        tiling=tiling,
    )  # fmt: skip


#: The model of each alias.
SHAPES = {
    "llava-1.5-7b": _llava(_VICUNA_7B),
    "llava-1.5-13b": _llava(_VICUNA_13B),
    "llava-v1.6-vicuna-7b": _llava(_VICUNA_7B, _NEXT_TILES),
    "llava-v1.6-vicuna-13b": _llava(_VICUNA_13B, _NEXT_TILES),
    "llava-v1.6-mistral-7b": _llava(_MISTRAL_7B, _NEXT_TILES),
    "llava-v1.6-34b": _llava(_YI_34B, _NEXT_TILES, image=64000, eos=7),
    "llama3-llava-next-8b": _llava(_LLAMA3_8B, _NEXT_TILES, image=128256, eos=128009),
    "llava-interleave-qwen-0.5b": _siglip(_QWEN15_05B),
    "llava-interleave-qwen-7b": _siglip(_QWEN15_7B),
    "llava-onevision-qwen2-0.5b": _siglip(_QWEN2_05B, _ONEVISION_TILES),
    "llava-onevision-qwen2-7b": _siglip(_QWEN2_7B, _ONEVISION_TILES),
}
