"""What a bundle stores, from the shape of a model alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from star_export.dtypes import DTYPES
from star_export.specs import EMBEDDING, ExportSpec, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of a model, as far as a bundle has them.

    Attributes:
        vision: Of the tower's layers that are used, the projector and the newline.
        decoder: Of the decoder with embeddings and head; once if these are the same.
        embeddings: Those of them that are the embeddings.
    """

    vision: int
    decoder: int
    embeddings: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.vision + self.decoder


@dataclass(frozen=True, kw_only=True)
class WeightBytes:
    """Bytes of :class:`Parameters` with their scales and zero points.

    Attributes:
        vision: Of the tower's layers that are used, the projector and the newline.
        decoder: Of the decoder with embeddings and head.
        embeddings: Those of them of which a token reads one row; none where the head reads them all.
    """

    vision: int
    decoder: int
    embeddings: int

    @property
    def stored(self) -> int:
        """Of the bundle."""
        return self.vision + self.decoder

    @property
    def read(self) -> int:
        """What a token of an answer reads."""
        return self.decoder - self.embeddings


@dataclass(frozen=True, kw_only=True)
class LinearShape:
    """Linear layers of one shape.

    Attributes:
        name: Of one of them, as the graphs have it.
        inputs: Rows of its weight.
        outputs: Columns of its weight.
        count: How many there are.
    """

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def names(self) -> list[str]:
        """Of all of them."""
        return [self.name.replace(".layers.0.", f".layers.{index}.") for index in range(self.count)]


def count_parameters(model: ModelSpec) -> Parameters:
    """Numbers of a model.

    Vision layers behind the one whose output is used are not among them.
    """
    text = model.text
    embeddings, layers = text.vocab_size * text.hidden_size, text.num_layers * _decoder_layer(model)
    newline = 0 if model.tiling is None else text.hidden_size
    return Parameters(
        vision=_tower(model) + _projector(model) + newline,
        decoder=(1 if text.tie_word_embeddings else 2) * embeddings + layers + text.hidden_size,
        embeddings=embeddings,
    )


def weight_bytes(spec: ExportSpec) -> WeightBytes:
    """Bytes of a bundle's weights in its own types, without tables of angles and without headers."""
    count, size, text = count_parameters(spec.model), DTYPES[spec.dtype].itemsize, spec.model.text
    rows = _saved(
        LinearShape(name=EMBEDDING, inputs=text.hidden_size, outputs=text.vocab_size, count=1), spec
    )
    saved = {True: 0, False: 0}  # of the decoder, and of what is before it
    for layer in linear_shapes(spec.model):
        saved[layer.name.startswith(("language_model.", "lm_head"))] += _saved(layer, spec)
    embeddings = count.embeddings * size
    copied = text.tie_word_embeddings and not spec.shared_head
    return WeightBytes(
        vision=count.vision * size - saved[False],
        decoder=count.decoder * size + copied * embeddings - saved[True] - rows,
        embeddings=0 if spec.shared_head else embeddings - rows,
    )


def _saved(layer: LinearShape, spec: ExportSpec) -> int:
    """Bytes that integers instead of ``spec.dtype`` save."""
    kinds = Counter(spec.quantized(f"{name}.weight", layer.inputs) for name in layer.names)
    weights, size, saved = layer.inputs * layer.outputs, DTYPES[spec.dtype].itemsize, 0
    for kind, count in kinds.items():
        if kind is not None and spec.quantization is not None:
            scales = weights // spec.quantization.block
            zero_points = DTYPES[kind].nbytes(scales) if kind.startswith("u") else 0
            saved += count * (weights * size - DTYPES[kind].nbytes(weights) - scales * size - zero_points)
    return saved


def linear_shapes(model: ModelSpec) -> Iterator[LinearShape]:
    """Every linear layer of a model: the decoder's, then those before it."""
    text, vision = model.text, model.vision
    d, query, key = text.hidden_size, text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    t, m, features = (
        vision.hidden_size,
        vision.intermediate_size,
        vision.hidden_size * len(vision.feature_layers),
    )
    groups = {
        ("language_model.layers.0", text.num_layers): {
            "self_attn.q_proj": (d, query), "self_attn.k_proj": (d, key), "self_attn.v_proj": (d, key),
            "self_attn.o_proj": (query, d), "mlp.gate_proj": (d, text.intermediate_size),
            "mlp.up_proj": (d, text.intermediate_size), "mlp.down_proj": (text.intermediate_size, d),
        },
        ("vision_tower.encoder.layers.0", vision.num_layers): {
            "self_attn.q_proj": (t, t), "self_attn.k_proj": (t, t), "self_attn.v_proj": (t, t),
            "self_attn.out_proj": (t, t), "mlp.fc1": (t, m), "mlp.fc2": (m, t),
        },
        ("multi_modal_projector", 1): {"linear_1": (features, d), "linear_2": (d, d)},
    }  # fmt: skip
    yield LinearShape(name="lm_head", inputs=d, outputs=text.vocab_size, count=1)
    for (module, count), layers in groups.items():
        for name, (inputs, outputs) in layers.items():
            yield LinearShape(name=f"{module}.{name}", inputs=inputs, outputs=outputs, count=count)


def _decoder_layer(model: ModelSpec) -> int:
    text = model.text
    d, query, key = text.hidden_size, text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    biases = query * text.q_bias + key * (text.k_bias + text.v_bias) + d * text.o_bias
    mlp_biases = (2 * text.intermediate_size + d) * text.mlp_bias
    norms = 2 * d
    return d * (2 * query + 2 * key) + 3 * d * text.intermediate_size + biases + mlp_biases + norms


def _tower(model: ModelSpec) -> int:
    vision = model.vision
    d, m = vision.hidden_size, vision.intermediate_size
    layer = 4 * (d * d + d) + 2 * d * m + m + d + 2 * 2 * d
    patches = 3 * vision.patch_size**2 * d + (vision.num_patches + vision.has_cls) * d
    # CLIP has a class embedding and a norm before its layers, SigLIP a bias of its patches.
    return vision.num_layers * layer + patches + (3 * d if vision.has_cls else d)


def _projector(model: ModelSpec) -> int:
    d = model.text.hidden_size
    return (_features(model) + d) * d + 2 * d * model.projector_bias


def _features(model: ModelSpec) -> int:
    """Channels that enter the projector."""
    return model.vision.hidden_size * len(model.vision.feature_layers)
