"""Names, shapes and dtypes of every tensor that crosses a graph's border.

The one place that holds them: the exporter names its inputs and outputs from
here, and the manifest carries them, where the sessions and readers in other
languages find them.

Symbolic sizes: ``S`` prompt tokens, ``V`` visual tokens of the prompt, ``Q`` scoring
rows, ``N{n}`` the budget of stage ``n``, ``B`` sequences, ``C`` tokens appended to each
at once, ``L{n}`` tokens that the KV caches of layer group ``n`` have room for. Stage 1 is
the one before the decoder, those inside it are numbered from 2. Where pictures are cut
into tiles: ``T`` tiles of a picture, ``P`` its visual tokens before any is pruned, ``D1``
those that stage 1 drops where it keeps a share of them. Budgets enter as index lists of
which only the length is read, so every output size is an expression of input sizes and
one graph serves every budget.
"""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from star_export.dtypes import DTYPES
from star_export.specs import ExportSpec, LayerGroup, smallest_image
from star_export.specs.values import Count

#: Counts changes of what is below: graphs of another version cannot be run by this code.
CONTRACT_VERSION = 1

VISION, PREFILL, DECODE = "vision", "prefill", "decode"
GRAPHS = (VISION, PREFILL, DECODE)

PIXEL_VALUES = "pixel_values"
STAGE1_SLOTS = "stage1_slots"
STAGE1_DROPS = "stage1_drops"
PACKED_INDEX = "packed_index"
PACKED_WEIGHTS = "packed_weights"
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

#: Score that no attention reaches: of tokens that always stay.
ALWAYS_KEPT = 1e30

#: A size, or an expression of symbolic sizes such as ``S - V + N2``.
Dim = Count | Annotated[str, Meta(pattern="^[A-Z][0-9]{0,4}( [+-] [A-Z][0-9]{0,4})*$", max_length=32)]


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output.

    Attributes:
        name: Its name.
        dtype: Its element type, one of :data:`star_export.dtypes.DTYPES`.
        shape: Its sizes; a ``str`` is symbolic.
        role: ``length`` for an input of which only the length is read.
    """

    name: str
    dtype: Annotated[str, Meta(pattern=f"^({'|'.join(n for n, row in DTYPES.items() if row.packed == 1)})$")]
    shape: tuple[Dim, ...]
    role: Literal["length"] | None = None

    def __str__(self) -> str:
        role = f", of which only the {self.role} is read" if self.role else ""
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]{role}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        role = {"role": self.role} if self.role else {}
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), **role}


@dataclass(frozen=True)
class GraphSpec:
    """What crosses one graph's border.

    Attributes:
        inputs: In graph order.
        outputs: In graph order.
        aliases: For each output that is written in place, the name of the input whose memory it takes.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def plain_inputs(self) -> list[TensorSpec]:
        """Inputs that no output is written into."""
        return [tensor for tensor in self.inputs if tensor.name not in self.aliases.values()]

    @property
    def plain_outputs(self) -> list[TensorSpec]:
        """Outputs with memory of their own."""
        return [tensor for tensor in self.outputs if tensor.name not in self.aliases]

    def caches(self) -> dict[str, TensorSpec]:
        """The inputs that are written in place, by name."""
        tensors = {tensor.name: tensor for tensor in self.inputs}
        return {name: tensors[name] for name in self.aliases.values()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        inputs, outputs = ([t.to_dict() for t in tensors] for tensors in (self.inputs, self.outputs))
        return {"inputs": inputs, "outputs": outputs, "aliases": self.aliases}


@dataclass(frozen=True, kw_only=True)
class SizeRange:
    """What a symbolic size may be.

    Attributes:
        max: The largest; None if only memory limits it.
        default: What the bundle takes unless asked otherwise; None if each request decides.
    """

    min: Count
    max: Count | None
    default: Count | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        return {"min": self.min, "max": self.max} | ({"default": self.default} if self.default else {})


def past_names(layer: int) -> tuple[str, str]:
    """Input names of layer ``layer``'s key and value caches."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Output names of layer ``layer``'s key and value caches, updated in place."""
    return f"present.{layer}.key", f"present.{layer}.value"


def past_bias(group: str) -> str:
    """Input name of what proportional attention adds at each cached token of a layer group."""
    return f"past_key_bias.{group}"


def present_bias(group: str) -> str:
    """Output name of the same, updated in place."""
    return f"present_key_bias.{group}"


def feature_channels(spec: ExportSpec) -> int:
    """Channels of a visual token: the decoder's and, for proportional attention, the log of a count."""
    return spec.model.text.hidden_size + spec.proportional


#: In ``packed_index``, the place of a newline instead of a patch.
NEWLINE = -1
#: Patches that a visual token is made of where a grid may be scaled down: the corners of a bilinear sample.
TAPS = 4


def drops(spec: ExportSpec) -> bool:
    """Whether stage 1 is told how many tokens it drops of a picture: where it keeps a share of many."""
    return spec.stage1 is not None and spec.stage1.share is not None


def is_slots(name: str) -> bool:
    """Whether a tensor is the budget of a stage, of which only the length is read."""
    return name.startswith("stage") and name.endswith(("_slots", "_drops"))


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


@dataclass(frozen=True, kw_only=True)
class CacheGroup(LayerGroup):
    """A layer group as the manifest has it.

    Attributes:
        lengths: The input of decode that has the tokens in its caches.
    """

    lengths: str


def cache_groups(spec: ExportSpec) -> tuple[CacheGroup, ...]:
    """Each layer group with its input of decode."""
    pairs = zip(spec.groups, lengths_names(spec), strict=True)
    return tuple(CacheGroup(**asdict(group), lengths=name) for group, name in pairs)


def capacity_symbols(spec: ExportSpec) -> tuple[str, ...]:
    """The size of each layer group's caches: tokens that they have room for."""
    return tuple(f"L{number}" for number in range(1, 1 + len(spec.groups)))


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


def size_ranges(spec: ExportSpec) -> dict[str, SizeRange]:
    """What every symbolic size of the contract may be, in graphs and engines alike."""
    most, text, tiled = spec.max_visual_tokens, spec.max_text_tokens, spec.model.tiling is not None
    least = 1 if spec.stage1 else smallest_image(spec.model)[0]
    ranges = {
        "B": SizeRange(min=1, max=None),
        "S": SizeRange(min=least + 1, max=most + text),
        "V": SizeRange(min=least, max=most, default=None if tiled else spec.image_tokens),
    }
    if not spec.fixed_capacities:
        capacities = zip(capacity_symbols(spec), spec.groups, strict=True)
        ranges |= {n: SizeRange(min=1, max=g.capacity, default=g.capacity) for n, g in capacities}
    if spec.append_tokens > 1:
        ranges["C"] = SizeRange(min=1, max=spec.append_tokens)
    if spec.decoder_stages:
        ranges["Q"] = SizeRange(min=1, max=text)
    if tiled:
        ranges |= _tiled_ranges(spec)
    if spec.stage1 is not None and not drops(spec):
        ranges["N1"] = SizeRange(min=1, max=spec.stage1.tokens, default=spec.stage1.tokens)
    for number, stage in zip(_decoder_numbers(spec), spec.decoder_stages, strict=True):
        ranges[f"N{number}"] = SizeRange(min=1, max=stage.max_tokens, default=stage.tokens)
    return ranges


def _tiled_ranges(spec: ExportSpec) -> dict[str, SizeRange]:
    """Sizes of the vision graph of a family that cuts pictures."""
    least, _newlines = smallest_image(spec.model)
    ranges = {
        "T": SizeRange(min=1, max=spec.images.max_tiles),
        "P": SizeRange(min=least, max=spec.largest_image),
    }
    if drops(spec):
        ranges["D1"] = SizeRange(min=1, max=spec.largest_image - 1)
    return ranges


def _vision(spec: ExportSpec) -> GraphSpec:
    return _tiled_vision(spec) if spec.model.tiling else _whole_vision(spec)


def _whole_vision(spec: ExportSpec) -> GraphSpec:
    """A picture is one tile, and its tokens are what the tower gives."""
    size = spec.model.vision.image_size
    channels = feature_channels(spec)
    pixels = TensorSpec(PIXEL_VALUES, spec.dtype, (1, 3, size, size))
    if spec.stage1 is None:
        features = TensorSpec(IMAGE_FEATURES, spec.dtype, (1, spec.image_tokens, channels))
        return GraphSpec((pixels,), (features,))
    return GraphSpec(
        (pixels, TensorSpec(STAGE1_SLOTS, "int64", ("N1",), "length")),
        (
            TensorSpec(IMAGE_FEATURES, spec.dtype, (1, "N1", channels)),
            TensorSpec(IMAGE_INDICES, "int64", (1, "N1")),
        ),
    )


def _tiled_vision(spec: ExportSpec) -> GraphSpec:
    """All tiles of a picture are one batch, and its tokens are what the host packs of their patches."""
    size, tiling = spec.model.vision.image_size, spec.model.tiling
    inputs = [TensorSpec(PIXEL_VALUES, spec.dtype, ("T", 3, size, size))]
    if tiling is None or tiling.max_grid is None:
        inputs += [TensorSpec(PACKED_INDEX, "int64", ("P",))]
    else:
        inputs += [TensorSpec(PACKED_INDEX, "int64", ("P", TAPS))]
        inputs += [TensorSpec(PACKED_WEIGHTS, "float32", ("P", TAPS))]
    kept = "P" if spec.stage1 is None else "P - D1" if drops(spec) else "N1"
    outputs = [TensorSpec(IMAGE_FEATURES, spec.dtype, (1, kept, feature_channels(spec)))]
    if spec.stage1 is not None:
        slots = (STAGE1_DROPS, "D1") if drops(spec) else (STAGE1_SLOTS, "N1")
        inputs += [TensorSpec(slots[0], "int64", slots[1:], "length")]
        outputs += [TensorSpec(IMAGE_INDICES, "int64", (1, kept))]
    return GraphSpec(tuple(inputs), tuple(outputs))


def _prefill(spec: ExportSpec) -> GraphSpec:
    text = spec.model.text
    inputs = [
        TensorSpec(INPUT_IDS, "int64", (1, "S")),
        TensorSpec(IMAGE_FEATURES, spec.dtype, (1, "V", feature_channels(spec))),
        TensorSpec(IMAGE_POSITIONS, "int64", (1, "V")),
    ]
    outputs = [TensorSpec(LOGITS, "float32", (1, text.vocab_size))]
    if spec.decoder_stages:
        inputs += [TensorSpec(QUERY_POSITIONS, "int64", (1, "Q"))]
    budgets = [f"N{stage}" for stage in _decoder_numbers(spec)]
    for slots, kept, budget in zip(decoder_slots(spec), kept_names(spec), budgets, strict=True):
        inputs += [TensorSpec(slots, "int64", (budget,), "length")]
        outputs += [TensorSpec(kept, "int64", (1, f"S - V + {budget}"))]
    return _with_caches(inputs, outputs, spec, batch=1)


def _decode(spec: ExportSpec) -> GraphSpec:
    tokens: Dim = "C" if spec.append_tokens > 1 else 1
    inputs = [
        TensorSpec(INPUT_IDS, "int64", ("B", tokens)),
        TensorSpec(POSITION_IDS, "int64", ("B", tokens)),
        *(TensorSpec(name, "int64", ("B",)) for name in lengths_names(spec)),
    ]
    logits = TensorSpec(LOGITS, "float32", ("B", spec.model.text.vocab_size))
    return _with_caches(inputs, [logits], spec, batch="B")


def _with_caches(
    inputs: list[TensorSpec], outputs: list[TensorSpec], spec: ExportSpec, *, batch: Dim
) -> GraphSpec:
    """A graph of the decoder, which writes every layer's KV caches in place.

    For proportional attention also, per layer group, what is added at the keys.
    """
    text = spec.model.text
    past, present, aliases = [], [], {}
    capacities: list[Dim] = [group.capacity for group in spec.groups]
    if not spec.fixed_capacities:
        capacities[:] = capacity_symbols(spec)
    for layer in range(text.num_layers):
        shape = (batch, text.num_kv_heads, capacities[spec.group(layer)], text.head_dim)
        for name, written in zip(past_names(layer), present_names(layer), strict=True):
            past += [TensorSpec(name, spec.dtype, shape)]
            present += [TensorSpec(written, spec.dtype, shape)]
            aliases[written] = name
    for capacity, name in zip(capacities, group_names(spec) if spec.proportional else (), strict=False):
        shape = (batch, 1, capacity, 1)
        past += [TensorSpec(past_bias(name), spec.dtype, shape)]
        present += [TensorSpec(present_bias(name), spec.dtype, shape)]
        aliases[present_bias(name)] = past_bias(name)
    return GraphSpec((*inputs, *past), (*outputs, *present), aliases)
