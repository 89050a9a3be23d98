"""A bundle's graphs as OpenVINO reads them: what its ONNX reader lacks, or reads too slowly, from here.

Four operators are converted by the functions below. Weights stay where the reader maps them.
"""

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as ops
from openvino.frontend.onnx import ConversionExtension

from star_export.bundle import Bundle
from star_export.contract import DECODE, STAR_DOMAIN, TOPK_GATHER

_HEADS, _TOKENS, _CHANNELS = 1, 2, 3  # axes of queries, keys, values and caches


def read_graph(bundle: Bundle, graph: str) -> ov.Model:
    """One graph of a bundle, whose caches are inputs still only where it reads them.

    Prefill reads none: its outputs ``present...`` are what is to be written into them from index 0.
    """
    core = ov.Core()
    writes = _scattered if graph == DECODE else _update
    for extension in (
        ConversionExtension(TOPK_GATHER, STAR_DOMAIN, _topk_gather),
        ConversionExtension("TensorScatter", writes),
        ConversionExtension("RotaryEmbedding", _rotary_embedding),
        ConversionExtension("Attention", _attention),
    ):
        core.add_extension(extension)
    model = core.read_model(bundle.graph_path(graph))
    for parameter in model.get_parameters():
        if not parameter.output(0).get_target_inputs():
            model.remove_parameter(parameter)
    return model


def _ints(*values: int) -> ov.Node:
    return ops.constant(np.array(values, np.int64))


def _topk_gather(node: Any) -> list[Any]:
    """The body of ``star::TopKGather``; see :mod:`star_export.graphs.ops`."""
    x, scores, slots = (node.get_input(place) for place in range(3))
    ranked = ops.select(ops.is_nan(scores), ops.constant(np.float32(-np.inf)), scores)
    k = ops.squeeze(ops.shape_of(slots), _ints(0))
    types = {"index_element_type": "i64", "stable": True}
    best = ops.topk(ranked, k, -1, "max", "value", **types).output(1)
    indices = ops.topk(best, k, -1, "min", "value", **types).output(0)
    return [ops.gather(x, indices, _ints(1), batch_dims=1).output(0), indices]


def _update(node: Any) -> list[Any]:
    """Of a ``TensorScatter`` into a cache that is empty, what it writes."""
    return [node.get_input(1)]


def _scattered(node: Any) -> list[Any]:
    """``TensorScatter`` along the tokens: ``update [B, H, C, D]`` at ``indices [B]``."""
    cache, update, indices = (node.get_input(place) for place in range(3))
    count = ops.gather(ops.shape_of(update), _ints(_TOKENS), _ints(0))
    steps = ops.range(_scalar(0), ops.squeeze(count, _ints(0)), _scalar(1), "i64")
    places = ops.add(ops.unsqueeze(indices, _ints(1)), steps)  # [B, C]
    places = ops.broadcast(
        ops.unsqueeze(places, _ints(1, 3)), ops.shape_of(update), broadcast_spec="BIDIRECTIONAL"
    )
    return ops.scatter_elements_update(cache, places, update, _scalar(_TOKENS)).outputs()


def _scalar(value: int) -> ov.Node:
    return ops.constant(np.int64(value))


def _rotary_embedding(node: Any) -> list[Any]:
    """Rotary embedding of ``x [B, H, S, D]``, in a form that OpenVINO does not recognise.

    Where it does, it keeps everything in float32 that cosines come from: behind a stage inside the decoder
    they come from the kept positions, which come from every layer before.
    """
    x, cosines, sines, positions = (node.get_input(place) for place in range(4))
    half = cosines.get_partial_shape()[-1].get_length()
    tables = [ops.unsqueeze(ops.gather(table, positions, _scalar(0)), _ints(1)) for table in (cosines, sines)]
    cosine, sine = ops.concat([tables[0]] * 2, -1), ops.concat([ops.negative(tables[1]), tables[1]], -1)
    halves = [ops.slice(x, _ints(at), _ints(at + half), _ints(1), _ints(-1)) for at in (half, 0)]
    return ops.add(ops.multiply(x, cosine), ops.multiply(ops.concat(halves, -1), sine)).outputs()


def _attention(node: Any) -> list[Any]:
    """Fused attention; a NaN stays one, which the reader's own conversion turns into zero."""
    q, k, v = (node.get_input(place) for place in range(3))
    mask = node.get_input(3) if node.get_input_size() > 3 else None
    causal = bool(node.get_attribute("is_causal", 0))
    if mask is None:
        return ops.scaled_dot_product_attention(q, k, v, causal=causal).outputs()
    return ops.scaled_dot_product_attention(q, k, v, mask, causal=causal).outputs()
