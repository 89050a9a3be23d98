"""What TensorRT's ONNX parser gets wrong without a word, found before it parses.

It looks operators up by name and ignores their domain, and it drops inputs and
attributes that it does not know. Both give an engine that runs and is wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from star_export.contract import STAR_DOMAIN
from star_export.errors import BundleError

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Honoured:
    """What the parser takes into account of one operator.

    Attributes:
        inputs: How many inputs it reads.
        only: Attributes that it reads for these values only; all others it honours.
    """

    inputs: int
    only: dict[str, tuple[Any, ...]] = field(default_factory=dict)


#: Operators of our graphs of which the parser knows a part (TensorRT-RTX 1.7.1).
PARTLY = {
    "Attention": Honoured(4, {"qk_matmul_output_mode": (0,), "softcap": (0.0,)}),  # input 7: nonpad_kv_seqlen
    "Cast": Honoured(1, {"saturate": (1,)}),
    "LayerNormalization": Honoured(3, {"stash_type": (1,)}),
    "RMSNormalization": Honoured(2, {"stash_type": (1,)}),
    "TensorScatter": Honoured(3, {"axis": (-2, 2), "mode": (b"linear",)}),
    "TopK": Honoured(2, {"sorted": (1,)}),
}


def review(path: Path) -> onnx.ModelProto:
    """Load a graph without its weights and refuse what the parser would get wrong.

    Raises:
        BundleError: Naming the node, its operator and what would be lost.
    """
    try:
        onnx.checker.check_model(str(path))
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # onnx and protobuf raise unrelated types
        raise BundleError(f"{path} is not a valid ONNX graph: {error}") from error
    builtin = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    for node in _nodes(model):
        if fault := _fault(node, builtin):
            raise BundleError(f"{path}: {_label(node)}: {fault}")
    return model


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _label(node: onnx.NodeProto) -> str:
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"node {node.name or node.output[0]} ({operator})"


def _fault(node: onnx.NodeProto, builtin: set[str]) -> str | None:
    """What the parser would lose of a node, and what to do; None when nothing."""
    if node.domain not in _STANDARD:
        if node.op_type in builtin:
            return (
                f"TensorRT's parser ignores the domain and would take ONNX's own {node.op_type}; "
                "give the operator a name that ONNX does not have"
            )
        return None
    honoured = PARTLY.get(node.op_type)
    if honoured is None:
        return None
    for position, name in enumerate(node.input[honoured.inputs :], start=honoured.inputs):
        if name:
            return (
                f"TensorRT's parser drops input {position} ({name}) without a word; "
                "express it another way, a length as an explicit bool mask for example"
            )
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if value not in honoured.only.get(attribute.name, (value,)):
            return (
                f"TensorRT's parser drops the attribute {attribute.name}={value!r}; leave it at its default"
            )
    return None


def op_counts(model: onnx.ModelProto, *, with_plugin: bool) -> dict[str, int]:
    """How often each standard operator occurs once the parser has put function bodies in place.

    Args:
        model: A reviewed graph.
        with_plugin: Whether a plugin stands in for the functions of the ``star`` domain.
    """
    bodies = {(function.domain, function.name): function for function in model.functions}
    counts: dict[str, int] = {}
    pending = list(model.graph.node)
    while pending:
        node = pending.pop()
        body = bodies.get((node.domain, node.op_type))
        if node.domain in _STANDARD:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
        elif body is not None and not (with_plugin and node.domain == STAR_DOMAIN):
            pending += body.node
    return counts
