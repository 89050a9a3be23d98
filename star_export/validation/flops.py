"""How much arithmetic a prefill takes, counted from the shapes."""

from dataclasses import dataclass

from star_export.specs import ExportSpec, TextSpec


@dataclass(frozen=True)
class PrefillFlops:
    """Arithmetic of one prefill, without the vision tower.

    Attributes:
        fastv: FastV's estimate (arXiv 2403.06764, section 4.2): multiply-accumulates of
            ``4nd^2 + 2n^2d + 2ndm`` per layer.
        exact: Floating-point operations of every matrix product the graph really has:
            gated MLP, grouped-query projections, full attention squares, the stage-2
            attention map, logits of the last position.
    """

    fastv: float
    exact: float


def prefill_flops(spec: ExportSpec, *, text_tokens: int, query_tokens: int, keep: int | None) -> PrefillFlops:
    """Arithmetic of a prefill with one image.

    Args:
        spec: The exported model.
        text_tokens: Prompt tokens that are not visual.
        query_tokens: Those of them after the image, which score stage 2.
        keep: Visual tokens after stage 2; None for no pruning at all, of either stage.
    """
    text, star = spec.model.text, spec.star
    if keep is None or star is None:
        tokens = spec.model.vision.num_patches + text_tokens
        layers = [tokens] * text.num_layers
        scoring = 0.0
    else:
        early, late = star.stage1_keep + text_tokens, keep + text_tokens
        layers = [early] * star.prune_layer + [late] * (text.num_layers - star.prune_layer)
        scoring = 2.0 * query_tokens * early * text.num_heads * text.head_dim
    head = 2.0 * text.hidden_size * text.vocab_size
    exact = sum(_layer_flops(text, tokens) for tokens in layers) + head + scoring
    return PrefillFlops(sum(_fastv_layer(text, tokens) for tokens in layers), exact)


def _fastv_layer(text: TextSpec, n: int) -> float:
    d, m = text.hidden_size, text.intermediate_size
    return 4.0 * n * d * d + 2.0 * n * n * d + 2.0 * n * d * m


def _layer_flops(text: TextSpec, n: int) -> float:
    d, m = text.hidden_size, text.intermediate_size
    query, key = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    projections = 2.0 * n * d * (2 * query + 2 * key)
    attention = 2.0 * 2.0 * n * n * query
    mlp = 3.0 * 2.0 * n * d * m
    return projections + attention + mlp
