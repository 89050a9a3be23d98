"""Operators that torch has no name for, as they appear in the ONNX graphs.

``star::TopKGather`` is the plugin of both STAR stages. In ONNX it is a call in
the domain ``star`` together with a model-local function body of standard ops:
ONNX Runtime inlines the body, TensorRT takes the plugin of the same name when
one is registered, and the body is the plugin's specification.
"""

import onnx_ir as ir
import torch
from onnx import TensorProto, helper

from star_export.contract import STAR_DOMAIN, STAR_DOMAIN_VERSION, TOPK_GATHER

OPSET = 24


def topk_gather(
    x: torch.Tensor, scores: torch.Tensor, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` best rows of ``x``, in their old order.

    Args:
        x: Rows to choose from, ``[B, N, C]``.
        scores: float32 ``[B, N]``; NaN counts as minus infinity.
        slots: int64 ``[k]``, of which only the length is read.

    Returns:
        The kept rows ``[B, k, C]`` and their int64 indices ``[B, k]``, ascending.
        Equal scores prefer the lower index.
    """
    batch, _, channels = x.shape
    kept = slots.shape[0]
    rows, indices = torch.onnx.ops.symbolic_multi_out(
        f"{STAR_DOMAIN}::{TOPK_GATHER}",
        (x, scores, slots),
        attrs={"plugin_namespace": STAR_DOMAIN},
        dtypes=(x.dtype, torch.int64),
        shapes=([batch, kept, channels], [batch, kept]),
        version=STAR_DOMAIN_VERSION,
    )
    return rows, indices


def drop_worst(
    x: torch.Tensor, scores: torch.Tensor, drops: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All but the ``d`` worst rows of ``x``, in their old order: as :func:`topk_gather` of the others.

    TensorRT's own TopK chooses at most 3840 of any number of rows, so from many rows few are dropped.

    Args:
        x: Rows to choose from, ``[1, N, C]``.
        scores: float32 ``[1, N]``, finite.
        drops: int64 ``[d]``, of which only the length is read.

    Returns:
        The kept rows ``[1, N - d, C]`` and their int64 indices ``[1, N - d]``, ascending.
        Equal scores prefer the lower index.
    """
    count, dropped = x.shape[1], drops.shape[0]
    worst = -scores.flip(1)  # from the last on: of equals the later one is dropped
    _, places = topk_gather(worst[..., None], worst, drops)
    # How many rows before each dropped one stay, ascending. Row s of the result has moved by as many
    # dropped rows as have s of the others before them, or fewer.
    before = count - 1 - places.flip(1) - torch.arange(dropped)  # [1, d]
    slots = torch.arange(count - dropped)
    kept = slots + (before[:, None] <= slots[:, None]).sum(-1)  # [1, N - d]
    return x[:, kept[0]], kept


def cache_write(cache: torch.Tensor, update: torch.Tensor, write_indices: torch.Tensor) -> torch.Tensor:
    """Write ``update [B, H, S, D]`` into ``cache [B, H, capacity, D]`` at ``write_indices [B]``.

    ONNX ``TensorScatter`` (opset 24), linear mode; in place when the runtime
    binds input and output to the same memory.
    """
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, update, write_indices),
        attrs={"axis": -2, "mode": "linear"},
        dtype=cache.dtype,
        shape=cache.shape,
        version=OPSET,
    )


def topk_gather_function() -> ir.Function:
    """The ONNX body of ``star::TopKGather``, in standard operators of opset 24.

    ``TopK`` breaks ties towards the lower index (ONNX TopK-11); a second ``TopK``
    over the chosen indices puts them in ascending order.
    """
    infinity = helper.make_tensor("lowest", TensorProto.FLOAT, [], [float("-inf")])
    nodes = [
        helper.make_node("IsNaN", ["scores"], ["unordered"]),
        helper.make_node("Constant", [], ["lowest"], value=infinity),
        helper.make_node("Where", ["unordered", "lowest", "scores"], ["ranked"]),
        helper.make_node("Shape", ["slots"], ["k"]),
        helper.make_node("TopK", ["ranked", "k"], ["best_scores", "best"], axis=-1),
        helper.make_node("TopK", ["best", "k"], ["indices", "order"], axis=-1, largest=0),
        helper.make_node("Constant", [], ["last_axis"], value_ints=[-1]),
        helper.make_node("Unsqueeze", ["indices", "last_axis"], ["rows"]),
        helper.make_node("GatherND", ["x", "rows"], ["kept"], batch_dims=1),
    ]
    function = helper.make_function(
        STAR_DOMAIN,
        TOPK_GATHER,
        ["x", "scores", "slots"],
        ["kept", "indices"],
        nodes,
        [helper.make_opsetid("", OPSET)],
        doc_string="The k best rows, ties to the lower index, ascending. k is the length of slots.",
        attributes=["plugin_namespace"],
    )
    return ir.serde.deserialize_function(function)
