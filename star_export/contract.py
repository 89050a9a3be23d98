"""Names, shapes and dtypes of every tensor that crosses a graph's border.

The one place that holds them: the exporter names its inputs and outputs from
here, the sessions and the pipeline read them, and the manifest carries them
for C++ and Triton.

Symbolic sizes: ``S`` prompt tokens, ``V`` visual tokens, ``Q`` scoring rows,
``N{n}`` the budget of stage ``n``, ``B`` sequences. Stage 1 is the one before
the decoder, those inside it are numbered from 2. Budgets enter as index lists of
which only the length is read, so every output size is an expression of input
sizes and one graph serves every budget.
"""

from dataclasses import dataclass
from typing import Any

from star_export.specs import ExportSpec

#: Counts changes of what is below: graphs of another version cannot be run by this code.
CONTRACT_VERSION = 1

VISION, PREFILL, DECODE = "vision", "prefill", "decode"
GRAPHS = (VISION, PREFILL, DECODE)

PIXEL_VALUES = "pixel_values"
STAGE1_SLOTS = "stage1_slots"
IMAGE_FEATURES = "image_features"
IMAGE_INDICES = "image_indices"
INPUT_IDS = "input_ids"
IMAGE_POSITIONS = "image_positions"
QUERY_POSITIONS = "query_positions"
POSITION_IDS = "position_ids"
LOGITS = "logits"
KEPT_POSITIONS = "kept_positions"

#: Domain, version and plugin namespace of the custom operators.
STAR_DOMAIN = "star"
STAR_DOMAIN_VERSION = 1
TOPK_GATHER = "TopKGather"

Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: its name, dtype and shape (``str`` = symbolic size)."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of one graph, in graph order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        return {
            side: [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in tensors]
            for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs))
        }


def past_names(layer: int) -> tuple[str, str]:
    """Input names of layer ``layer``'s key and value caches."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Output names of layer ``layer``'s key and value caches, updated in place."""
    return f"present.{layer}.key", f"present.{layer}.value"


def cache_pairs(spec: ExportSpec) -> list[tuple[str, str]]:
    """``(past, present)`` names of every KV cache, in graph order."""
    return [
        pair
        for layer in range(spec.model.text.num_layers)
        for pair in zip(past_names(layer), present_names(layer), strict=True)
    ]


def is_slots(name: str) -> bool:
    """Whether a tensor is the budget of a stage, of which only the length is read."""
    return name.startswith("stage") and name.endswith("_slots")


def decoder_slots(spec: ExportSpec) -> tuple[str, ...]:
    """Inputs of prefill, one for each stage inside the decoder."""
    return tuple(f"stage{number}_slots" for number in _decoder_numbers(spec))


def kept_names(spec: ExportSpec) -> tuple[str, ...]:
    """Outputs of prefill: the prompt positions that are left after each stage inside the decoder.

    After the last it is ``kept_positions``, after stage ``n`` before that ``stage{n}_positions``.
    """
    numbers = _decoder_numbers(spec)
    return tuple(KEPT_POSITIONS if n == numbers[-1] else f"stage{n}_positions" for n in numbers)


def group_names(spec: ExportSpec) -> tuple[str, ...]:
    """Names of the layer groups: ``early``; of the last of several ``late``; between them ``group2``, ..."""
    later = [*(f"group{number}" for number in range(2, len(spec.groups))), "late"]
    return ("early", *later[: len(spec.groups) - 1])


def lengths_names(spec: ExportSpec) -> tuple[str, ...]:
    """Inputs of decode, one for each layer group: tokens in its caches."""
    return tuple(f"{name}_lengths" for name in group_names(spec))


def is_lengths(name: str) -> bool:
    """Whether a tensor is an input of decode that :func:`lengths_names` gives."""
    return name.endswith("_lengths")


def _decoder_numbers(spec: ExportSpec) -> range:
    return range(2, 2 + len(spec.decoder_stages))


def contract(spec: ExportSpec) -> dict[str, GraphSpec]:
    """The three graphs' inputs and outputs for ``spec``.

    Tensors that only pruning needs (slots, indices, query rows, lengths of later
    groups) are there for the stages of the schedule alone.
    """
    return {VISION: _vision(spec), PREFILL: _prefill(spec), DECODE: _decode(spec)}


def _vision(spec: ExportSpec) -> GraphSpec:
    size = spec.model.vision.image_size
    channels = spec.model.text.hidden_size
    pixels = TensorSpec(PIXEL_VALUES, spec.dtype, (1, 3, size, size))
    if spec.stage1 is None:
        features = TensorSpec(IMAGE_FEATURES, spec.dtype, (1, spec.image_tokens, channels))
        return GraphSpec((pixels,), (features,))
    return GraphSpec(
        (pixels, TensorSpec(STAGE1_SLOTS, "int64", ("N1",))),
        (
            TensorSpec(IMAGE_FEATURES, spec.dtype, (1, "N1", channels)),
            TensorSpec(IMAGE_INDICES, "int64", (1, "N1")),
        ),
    )


def _prefill(spec: ExportSpec) -> GraphSpec:
    text = spec.model.text
    inputs = [
        TensorSpec(INPUT_IDS, "int64", (1, "S")),
        TensorSpec(IMAGE_FEATURES, spec.dtype, (1, "V", text.hidden_size)),
        TensorSpec(IMAGE_POSITIONS, "int64", (1, "V")),
    ]
    outputs = [TensorSpec(LOGITS, "float32", (1, text.vocab_size))]
    if spec.decoder_stages:
        inputs += [TensorSpec(QUERY_POSITIONS, "int64", (1, "Q"))]
    budgets = [f"N{stage}" for stage in _decoder_numbers(spec)]
    for slots, kept, budget in zip(decoder_slots(spec), kept_names(spec), budgets, strict=True):
        inputs += [TensorSpec(slots, "int64", (budget,))]
        outputs += [TensorSpec(kept, "int64", (1, f"S - V + {budget}"))]
    past, present = _caches(spec, batch=1)
    return GraphSpec((*inputs, *past), (*outputs, *present))


def _decode(spec: ExportSpec) -> GraphSpec:
    inputs = [
        TensorSpec(INPUT_IDS, "int64", ("B", 1)),
        TensorSpec(POSITION_IDS, "int64", ("B", 1)),
        *(TensorSpec(name, "int64", ("B",)) for name in lengths_names(spec)),
    ]
    logits = TensorSpec(LOGITS, "float32", ("B", spec.model.text.vocab_size))
    past, present = _caches(spec, batch="B")
    return GraphSpec((*inputs, *past), (logits, *present))


def _caches(spec: ExportSpec, *, batch: Dim) -> tuple[list[TensorSpec], list[TensorSpec]]:
    text = spec.model.text
    past, present = [], []
    for layer in range(text.num_layers):
        shape = (batch, text.num_kv_heads, spec.cache_capacity(layer), text.head_dim)
        past += [TensorSpec(name, spec.dtype, shape) for name in past_names(layer)]
        present += [TensorSpec(name, spec.dtype, shape) for name in present_names(layer)]
    return past, present
