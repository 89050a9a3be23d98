"""A bundle's graphs as OpenVINO reads them: what its ONNX reader lacks, or reads too slowly, from here.

Five operators of prefill, and four of decode, are converted by the functions below.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as ops
from openvino.frontend.onnx import ConversionExtension
from openvino.preprocess import PrePostProcessor

from star_export.bundle import Bundle
from star_export.contract import DECODE, STAR_DOMAIN, TOPK_GATHER, past_names, present_names
from star_export.engines.session import HostArray

#: What a conversion gives: OpenVINO's outputs, which mypy does not know.
Outputs = Any

_HEADS, _TOKENS, _CHANNELS = 1, 2, 3  # axes of queries, keys, values and caches


def read_graph(
    bundle: Bundle, graph: str, weights: Mapping[str, HostArray], *, rounded_caches: bool
) -> ov.Model:
    """One graph of a bundle. Its outputs ``present...`` are not caches but what is to be written into them.

    Caches are inputs still where it reads them: prefill reads none.

    Args:
        bundle: An opened bundle.
        graph: Which.
        weights: Bytes of tensors, by name, which it reads where they lie.
        rounded_caches: Keys and values come and go in bfloat16.

    Raises:
        RuntimeError: If OpenVINO cannot read it.
    """
    core = ov.Core()
    decoder = _Decode() if graph == DECODE else None
    for extension in (
        ConversionExtension(TOPK_GATHER, STAR_DOMAIN, _topk_gather),
        ConversionExtension("TensorScatter", decoder.cache_write if decoder else _update),
        ConversionExtension("GatherND", _gather_nd),
        ConversionExtension("Attention", decoder.attention if decoder else _attention),
        *(() if decoder else (ConversionExtension("RotaryEmbedding", _rotary_embedding),)),
    ):
        core.add_extension(extension)
    model = core.read_model(bundle.graph_path(graph))
    if decoder:
        for result in model.get_results():
            if update := decoder.updates.get(_key(result.input_value(0))):
                result.input(0).replace_source_output(update)
    for constant in model.get_ops():
        if constant.get_type_name() == "Constant" and (name := constant.get_friendly_name()) in weights:
            shape, kind = constant.get_output_shape(0), constant.get_output_element_type(0)
            mapped = ov.op.Constant(ov.Tensor(weights[name], shape, kind))
            constant.output(0).replace(mapped.output(0))
    for parameter in model.get_parameters():
        if not parameter.output(0).get_target_inputs():
            model.remove_parameter(parameter)
    if rounded_caches:
        _round_caches(bundle, model)
    return model


def _round_caches(bundle: Bundle, model: ov.Model) -> None:
    """Let keys and values come and go in bfloat16, in which this machine multiplies them."""
    layers = range(bundle.spec.model.text.num_layers)
    names = {name for layer in layers for name in (*past_names(layer), *present_names(layer))}
    form = PrePostProcessor(model)
    for ports, face in ((model.inputs, form.input), (model.outputs, form.output)):
        for port in ports:
            for name in port.get_names() & names:
                face(name).tensor().set_element_type(ov.Type.bf16)
    form.build()


def _ints(*values: int) -> ov.Node:
    return ops.constant(np.array(values, np.int64))


def _topk_gather(node: Any) -> Outputs:
    """The body of ``star::TopKGather``; see :mod:`star_export.graphs.ops`."""
    x, scores, slots = (node.get_input(place) for place in range(3))
    ranked = ops.select(ops.is_nan(scores), ops.constant(np.float32(-np.inf)), scores)
    k = ops.squeeze(ops.shape_of(slots), _ints(0))
    types = {"index_element_type": "i64", "stable": True}
    best = ops.topk(ranked, k, -1, "max", "value", **types).output(1)
    indices = ops.topk(best, k, -1, "min", "value", **types).output(0)
    return [ops.gather(x, indices, _ints(1), batch_dims=1).output(0), indices]


def _update(node: Any) -> Outputs:
    """Of a ``TensorScatter`` into a cache that is empty, what it writes."""
    return [node.get_input(1)]


def _scalar(value: int) -> ov.Node:
    return ops.constant(np.int64(value))


def _gather_nd(node: Any) -> Outputs:
    """``GatherND`` of whole rows, which is ``Gather``; of numbers in a column, from them in a row.

    OpenVINO 2026.4 drops what made a column ``[N, 1]`` of a matrix, and gathers the matrix's rows.
    """
    data, indices = node.get_input(0), node.get_input(1)
    batch_dims = int(node.get_attribute("batch_dims", 0))
    if indices.get_partial_shape()[-1] != 1:
        return ops.gather_nd(data, indices, batch_dims).outputs()
    places = ops.squeeze(indices, _ints(-1))
    shape = data.get_partial_shape()
    if batch_dims == 0 and len(shape) == 2 and shape[1] == 1:
        found = ops.gather(ops.reshape(data, _ints(-1), special_zero=False), places, _scalar(0))
        return ops.unsqueeze(found, _ints(-1)).outputs()
    return ops.gather(data, places, _scalar(batch_dims), batch_dims=batch_dims).outputs()


def _rotary_embedding(node: Any) -> Outputs:
    """Rotary embedding of ``x [B, H, S, D]``, in a form that OpenVINO does not recognise.

    Where it does, it keeps everything in float32 that cosines come from: behind a stage inside the decoder
    they come from the kept positions, which come from every layer before. In decode they are given.
    """
    x, cosines, sines, positions = (node.get_input(place) for place in range(4))
    half = cosines.get_partial_shape()[-1].get_length()
    tables = [ops.unsqueeze(ops.gather(table, positions, _scalar(0)), _ints(1)) for table in (cosines, sines)]
    cosine, sine = ops.concat([tables[0]] * 2, -1), ops.concat([ops.negative(tables[1]), tables[1]], -1)
    halves = [ops.slice(x, _ints(at), _ints(at + half), _ints(1), _ints(-1)) for at in (half, 0)]
    return ops.add(ops.multiply(x, cosine), ops.multiply(ops.concat(halves, -1), sine)).outputs()


def _attention(node: Any) -> Outputs:
    """Fused attention; a NaN stays one, which the reader's own conversion turns into zero."""
    q, *others = (node.get_input(place) for place in range(node.get_input_size()))
    heads, kv_heads = (tensor.get_partial_shape()[_HEADS].get_length() for tensor in (q, others[0]))
    if heads != kv_heads:
        others[:2] = (_repeated(tensor, heads, heads // kv_heads) for tensor in others[:2])
    causal = bool(node.get_attribute("is_causal", 0))
    return ops.scaled_dot_product_attention(q, *others, causal=causal).outputs()


def _repeated(tensor: Any, heads: int, times: int) -> Any:
    """Keys or values ``[B, Hkv, S, D]``, one head for each of the queries' ``[B, H, S, D]``."""
    several = ops.concat([ops.unsqueeze(tensor, _ints(_TOKENS))] * times, _TOKENS)
    channels = tensor.get_partial_shape()[_CHANNELS].get_length()
    return ops.reshape(several, _ints(0, heads, -1, channels), special_zero=True)


def _key(value: Any) -> tuple[str, int]:
    return value.get_node().get_name(), value.get_index()


class _Decode:
    """Conversions of decode, where attention looks at a cache and at what comes behind it one by one.

    So nothing copies a cache: OpenVINO would, to write into one of its inputs.

    Attributes:
        updates: What is to be written, by the value that stands for the cache with it.
    """

    def __init__(self) -> None:
        self.updates: dict[tuple[str, int], Any] = {}
        self._parts: dict[tuple[str, int], tuple[Any, Any, Any]] = {}  # cache, update and where it begins
        self._masks: dict[tuple[str, int], tuple[Any, Any]] = {}

    def cache_write(self, node: Any) -> Outputs:
        """``TensorScatter`` along the tokens: ``update [B, H, C, D]`` at ``indices [B]``."""
        cache, update, indices = (node.get_input(place) for place in range(3))
        places = ops.unsqueeze(self._places(update, indices), _ints(1, 3))
        places = ops.broadcast(places, ops.shape_of(update), broadcast_spec="BIDIRECTIONAL")
        written = ops.scatter_elements_update(cache, places, update, _scalar(_TOKENS)).output(0)
        self.updates[_key(written)] = update
        self._parts[_key(written)] = cache, update, indices
        return [written]

    def attention(self, node: Any) -> Outputs:
        """Attention of ``q [B, H, C, D]``, the query heads of a key head side by side in its rows."""
        q, k, v, mask = (node.get_input(place) for place in range(4))
        heads, channels = (q.get_partial_shape()[axis].get_length() for axis in (_HEADS, _CHANNELS))
        (keys, new_keys, indices), (values, new_values, _) = self._parts[_key(k)], self._parts[_key(v)]
        kv_heads = keys.get_partial_shape()[_HEADS].get_length()
        if _key(mask) not in self._masks:
            self._masks[_key(mask)] = self._split(mask, keys, new_keys, indices, heads // kv_heads)
        rows = ops.reshape(q, _ints(0, kv_heads, -1, channels), special_zero=True)
        rows = ops.multiply(rows, ops.constant(np.float32(channels**-0.5)))
        logits = [
            ops.add(ops.matmul(rows, part, False, True), added)
            for part, added in zip((keys, new_keys), self._masks[_key(mask)], strict=True)
        ]
        chances = ops.softmax(ops.concat(logits, -1), -1)
        capacity = ops.gather(ops.shape_of(keys), _ints(_TOKENS), _scalar(0))
        old = ops.slice(chances, _ints(0), capacity, _ints(1), _ints(-1))
        new = ops.slice(chances, capacity, _ints(np.iinfo(np.int64).max), _ints(1), _ints(-1))
        seen = ops.add(ops.matmul(old, values, False, False), ops.matmul(new, new_values, False, False))
        return ops.reshape(seen, _ints(0, heads, -1, channels), special_zero=True).outputs()

    @staticmethod
    def _places(update: Any, indices: Any) -> Any:
        """Where ``update [B, H, C, D]`` goes in its cache: ``[B, C]``."""
        count = ops.squeeze(ops.gather(ops.shape_of(update), _ints(_TOKENS), _scalar(0)), _ints(0))
        steps = ops.range(_scalar(0), count, _scalar(1), "i64")
        return ops.add(ops.unsqueeze(indices, _ints(1)), steps)

    def _split(self, mask: Any, cache: Any, update: Any, indices: Any, repeats: int) -> tuple[Any, Any]:
        """What is added where a query looks at a cache, and at what comes behind it.

        ``mask [B, 1, C, capacity]``, bool or added itself, is of the cache with that in it.
        """
        lowest = ops.constant(np.finfo(np.float32).min)
        if mask.get_element_type() == ov.Type.boolean:
            mask = ops.select(mask, ops.constant(np.float32(0)), lowest)
        capacity = ops.squeeze(ops.gather(ops.shape_of(cache), _ints(_TOKENS), _scalar(0)), _ints(0))
        order = ops.range(_scalar(0), capacity, _scalar(1), "i64")
        old = ops.select(ops.less(order, ops.unsqueeze(indices, _ints(1, 2, 3))), mask, lowest)
        new = ops.gather(mask, self._places(update, indices), _scalar(3), batch_dims=1)
        return ops.concat([old] * repeats, _TOKENS), ops.concat([new] * repeats, _TOKENS)
