"""The function body of star::TopKGather in ONNX Runtime, against its definition in numpy."""

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from star_export.contract import STAR_DOMAIN, STAR_DOMAIN_VERSION, TOPK_GATHER
from star_export.graphs.ops import OPSET, topk_gather_function

Array = npt.NDArray[np.generic]
Random = np.random.Generator

ONNX_TYPE = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def random(r: Random, shape: tuple[int, int]) -> Array:
    return r.standard_normal(shape)


def special(*values: float) -> Callable[[Random, tuple[int, int]], Array]:
    return lambda r, shape: np.where(r.random(shape) < 0.4, r.choice(values, shape), r.standard_normal(shape))


SCORES: dict[str, Callable[[Random, tuple[int, int]], Array]] = {
    "random": random,
    "softmax": lambda r, shape: r.dirichlet(np.ones(shape[1]), shape[0]),
    "many ties": lambda r, shape: r.integers(0, 4, shape),
    "all equal": lambda _, shape: np.full(shape, 0.25),
    "all NaN": lambda _, shape: np.full(shape, np.nan),
    "NaN": special(np.nan),
    "infinities": special(np.inf, -np.inf),
    "NaN and infinities": special(np.nan, np.inf, -np.inf),
    "both zeros": lambda r, shape: r.choice([0.0, -0.0], shape),
    "text always kept": lambda r, shape: np.where(r.random(shape) < 0.1, 1e30, r.random(shape)),
}
SIZES = [(1, 1, 1), (1, 9, 1), (1, 9, 9), (2, 9, 4), (2, 576, 518), (1, 646, 128), (2, 2928, 640)]


@cache
def session(dtype: str) -> ort.InferenceSession:
    def tensor(name: str, kind: int, *shape: int | str) -> object:
        return helper.make_tensor_value_info(name, kind, shape)

    call = helper.make_node(
        TOPK_GATHER,
        ["x", "scores", "slots"],
        ["kept", "indices"],
        domain=STAR_DOMAIN,
        plugin_namespace=STAR_DOMAIN,
    )
    graph = helper.make_graph(
        [call],
        "topk_gather",
        [
            tensor("x", ONNX_TYPE[dtype], "B", "N", "C"),
            tensor("scores", TensorProto.FLOAT, "B", "N"),
            tensor("slots", TensorProto.INT64, "k"),
        ],
        [tensor("kept", ONNX_TYPE[dtype], "B", "k", "C"), tensor("indices", TensorProto.INT64, "B", "k")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(STAR_DOMAIN, STAR_DOMAIN_VERSION)]
    model = helper.make_model(
        graph,
        functions=[ir.serde.serialize_function(topk_gather_function())],
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets[:1]),
    )
    return ort.InferenceSession(model.SerializeToString())


def best(scores: Array, k: int) -> list[list[int]]:
    """The definition: highest first, NaN as -inf, ties to the lower index; then ascending."""
    rows = np.where(np.isnan(scores), -np.inf, scores).tolist()
    return [sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]) for row in rows]


@pytest.mark.parametrize("dtype", ONNX_TYPE)
@pytest.mark.parametrize(("batch", "rows", "k"), SIZES)
@pytest.mark.parametrize("kind", SCORES)
def test_against_the_definition(kind: str, batch: int, rows: int, k: int, dtype: str) -> None:
    generator = np.random.default_rng(rows + k)
    x = generator.standard_normal((batch, rows, 5)).astype(dtype)
    scores = SCORES[kind](generator, (batch, rows)).astype(np.float32)
    slots = generator.integers(-9, 9, k)  # only the length counts
    kept, indices = session(dtype).run(None, {"x": x, "scores": scores, "slots": slots})
    expected = best(scores, k)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected
    assert kept.dtype == dtype
    np.testing.assert_array_equal(kept, np.stack([x[b, expected[b]] for b in range(batch)]))


@pytest.mark.parametrize(
    ("scores", "k", "expected"),
    [
        ([1.0, 3.0, 2.0, 3.0], 2, [1, 3]),
        ([1.0, 3.0, 3.0, 3.0], 2, [1, 2]),
        ([0.0, np.nan, -np.inf, np.nan], 2, [0, 1]),  # NaN ties with -inf: the lower index
        ([0.0, np.nan, -1e38, np.nan], 2, [0, 2]),
        ([-np.inf, np.nan, np.inf, np.nan], 3, [0, 1, 2]),
        ([5.0, 4.0, 3.0, 2.0], 3, [0, 1, 2]),
    ],
)
def test_by_hand(scores: list[float], k: int, expected: list[int]) -> None:
    x = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    feeds = {"x": x, "scores": np.float32([scores]), "slots": np.zeros(k, np.int64)}
    kept, indices = session("float32").run(None, feeds)
    assert indices.tolist() == [expected]
    assert kept.tolist() == x[:, expected].tolist()


def test_one_session_serves_every_budget() -> None:
    scores = np.random.default_rng(0).random((1, 2928), np.float32)
    x = scores[..., None]
    for k in (1, 2, 64, 640, 2927, 2928):
        _, indices = session("float32").run(None, {"x": x, "scores": scores, "slots": np.zeros(k, np.int64)})
        assert indices.tolist() == best(scores, k)
