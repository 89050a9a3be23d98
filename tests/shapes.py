"""Shapes of published models, without their weights."""

from star_export.specs import ModelSpec, TextSpec, Tiling, VisionSpec

#: Modules of `mha` in float32, of the one bundle of mixed element types that tests share.
WIDE = (
    "language_model.layers.1",
    "language_model.layers.4.mlp",
    "vision_tower.encoder.layers.0",
    "lm_head",
)

_MISTRAL = TextSpec(
    hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    vocab_size=32064, hidden_act="silu", rms_norm_eps=1e-5, mlp_bias=False, q_bias=False, k_bias=False,
    v_bias=False, o_bias=False, tie_word_embeddings=False, max_position_embeddings=32768,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6}, sliding_window=None,
)  # fmt: skip
_QWEN2 = TextSpec(
    hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64,
    vocab_size=152000, hidden_act="silu", rms_norm_eps=1e-6, mlp_bias=False, q_bias=True, k_bias=True,
    v_bias=True, o_bias=False, tie_word_embeddings=True, max_position_embeddings=32768,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6}, sliding_window=None,
)  # fmt: skip
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

#: LLaVA-v1.6-Mistral-7B.
NEXT = ModelSpec(
    model_type="llava_next", vision=_CLIP, text=_MISTRAL, projector_act="gelu", projector_bias=True,
    image_token_id=32000, eos_token_ids=(2,),
    tiling=Tiling(
        pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
        max_grid=None,
        several_whole=False,
    ),
)  # fmt: skip
#: LLaVA-OneVision-0.5B.
ONEVISION = ModelSpec(
    model_type="llava_onevision", vision=_SIGLIP, text=_QWEN2, projector_act="gelu", projector_bias=True,
    image_token_id=151646, eos_token_ids=(151645,),
    tiling=Tiling(
        pinpoints=tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)),
        max_grid=9,
        several_whole=True,
    ),
)  # fmt: skip
