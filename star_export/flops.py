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
            gated MLP, grouped-query projections, full attention squares, the attention maps
            that score stages, logits of the last position.
    """

    fastv: float
    exact: float


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Visual tokens in the layers of a decoder.

    Attributes:
        entering: In the first layers.
        stages: ``(after_layer, tokens)`` of each stage inside the decoder, in order.
    """

    entering: int
    stages: tuple[tuple[int, int], ...] = ()

    def tokens(self, layers: int) -> list[int]:
        """Visual tokens in each of ``layers`` layers."""
        found = [self.entering] * layers
        for after_layer, tokens in self.stages:
            found[after_layer:] = [tokens] * (layers - after_layer)
        return found


def spec_layout(spec: ExportSpec, keep: int | None) -> Layout:
    """The visual tokens of one image, as a bundle lays them out.

    Args:
        spec: The exported model.
        keep: Visual tokens after the last stage; None for no pruning at all, of any stage.
    """
    if keep is None or not spec.schedule:
        return Layout(entering=spec.largest_image)
    places = (stage.after_layer for stage in spec.decoder_stages)
    return Layout(entering=spec.image_tokens, stages=tuple(zip(places, spec.budgets(keep), strict=True)))


def prefill_flops(spec: ExportSpec, *, text_tokens: int, query_tokens: int, keep: int | None) -> PrefillFlops:
    """Arithmetic of a prefill with one image.

    Args:
        spec: The exported model.
        text_tokens: Prompt tokens that are not visual.
        query_tokens: Those of them after the image, which score the stages inside the decoder.
        keep: Visual tokens after the last stage; None for no pruning at all, of any stage.
    """
    layout = spec_layout(spec, keep)
    return layout_flops(spec.model.text, layout, text_tokens=text_tokens, query_tokens=query_tokens)


def layout_flops(text: TextSpec, layout: Layout, *, text_tokens: int, query_tokens: int) -> PrefillFlops:
    """Arithmetic of a prefill whose visual tokens are laid out in any way.

    Args:
        text: The decoder.
        layout: Its visual tokens, layer by layer.
        text_tokens: Prompt tokens that are not visual.
        query_tokens: Those of them that score the visual tokens at every stage.
    """
    layers = [visual + text_tokens for visual in layout.tokens(text.num_layers)]
    keys = sum(layers[after_layer - 1] for after_layer, _ in layout.stages)
    scoring = 2.0 * query_tokens * keys * text.num_heads * text.head_dim
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
