"""How much arithmetic a request takes, counted from the shapes."""

from dataclasses import dataclass

from star_export.specs import ExportSpec, Keep, TextSpec, VisionSpec


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


def pruned_layout(spec: ExportSpec, *, entering: int, keep: Keep | None) -> Layout:
    """The visual tokens of a request, as a bundle lays them out.

    Args:
        spec: The exported model.
        entering: Visual tokens when the decoder starts.
        keep: Budgets of the stages; the bundle's own by default.
    """
    places = (stage.after_layer for stage in spec.decoder_stages)
    budgets = spec.budgets(keep, entering=entering)
    return Layout(entering=entering, stages=tuple(zip(places, budgets, strict=True)))


def prefill_flops(text: TextSpec, layout: Layout, *, text_tokens: int, query_tokens: int) -> PrefillFlops:
    """Arithmetic of a prefill.

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


def vision_flops(vision: VisionSpec, tiles: int) -> float:
    """Floating-point operations of every matrix product in a vision tower's layers.

    Args:
        vision: The tower.
        tiles: Tiles that it sees, of one picture or of several.
    """
    n, d = vision.num_patches + vision.has_cls, vision.hidden_size
    projections_and_mlp = 2.0 * n * d * (4 * d + 2 * vision.intermediate_size)
    attention = 2.0 * 2.0 * n * n * d
    return tiles * vision.num_layers * (projections_and_mlp + attention)


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
