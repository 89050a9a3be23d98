"""Dropping the worst rows in ONNX Runtime, against a plain sort."""

from functools import cache

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from star_export.graphs.ops import OPSET, drop_worst
from star_export.graphs.passes import DefineStarOps, Optimize

Scores = npt.NDArray[np.float32]


class DropWorst(nn.Module):
    def forward(self, x: Tensor, scores: Tensor, drops: Tensor) -> tuple[Tensor, Tensor]:
        return drop_worst(x, scores, drops)


@cache
def session(dtype: torch.dtype = torch.float32) -> ort.InferenceSession:
    program = torch.onnx.export(
        DropWorst().eval(),
        (torch.zeros(1, 9, 5, dtype=dtype), torch.zeros(1, 9), torch.zeros(4, dtype=torch.int64)),
        dynamic_shapes=({1: Dim.DYNAMIC}, {1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}),
        input_names=["x", "scores", "drops"],
        output_names=["kept", "indices"],
        opset_version=OPSET,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    for step in (Optimize(), DefineStarOps()):
        step(program.model)
    return ort.InferenceSession(ir.serde.serialize_model(program.model).SerializeToString())


def best(scores: Scores, k: int) -> list[int]:
    """The definition: the highest, ties to the lower index; ascending."""
    return sorted(sorted(range(scores.shape[1]), key=lambda i: (-scores[0, i], i))[:k])


SCORES = {
    "random": lambda r, n: r.standard_normal((1, n)),
    "softmax": lambda r, n: r.dirichlet(np.ones(n), 1),
    "many ties": lambda r, n: r.integers(0, 4, (1, n)),
    "all equal": lambda _, n: np.full((1, n), 0.25),
    "both zeros": lambda r, n: r.choice([0.0, -0.0], (1, n)),
    "newlines": lambda r, n: np.where(r.random((1, n)) < 0.1, 1e30, r.integers(0, 9, (1, n))),
    "rising": lambda _, n: np.arange(n)[None],
    "falling": lambda _, n: -np.arange(n)[None],
}


@pytest.mark.parametrize(
    ("rows", "drops"), [(2, 1), (9, 1), (9, 4), (9, 8), (70, 7), (2340, 230), (7000, 3840), (7000, 1)]
)
@pytest.mark.parametrize("kind", SCORES)
def test_against_the_definition(kind: str, rows: int, drops: int) -> None:
    generator = np.random.default_rng(rows + drops)
    scores = SCORES[kind](generator, rows).astype(np.float32)
    x = generator.standard_normal((1, rows, 5)).astype(np.float32)
    slots = generator.integers(-9, 9, drops)  # only the length counts
    kept, indices = session().run(None, {"x": x, "scores": scores, "drops": slots})
    assert indices.dtype == np.int64
    assert indices.tolist() == [best(scores, rows - drops)]
    np.testing.assert_array_equal(kept, x[:, indices[0]])


def test_every_number_of_small_ones() -> None:
    generator = np.random.default_rng(0)
    for rows in range(2, 14):
        for drops in range(1, rows):
            scores = generator.integers(0, 3, (1, rows)).astype(np.float32)
            x = scores[..., None].repeat(5, axis=2)
            kept, indices = session().run(
                None, {"x": x, "scores": scores, "drops": np.zeros(drops, np.int64)}
            )
            assert indices.tolist() == [best(scores, rows - drops)]
            assert kept.shape == (1, rows - drops, 5)


def test_by_hand() -> None:
    scores = np.array([[3, 1, 2, 1, 1, 5]], np.float32)
    x = np.arange(30, dtype=np.float32).reshape(1, 6, 5)
    for drops, expected in [(1, [0, 1, 2, 3, 5]), (2, [0, 1, 2, 5]), (3, [0, 2, 5]), (4, [0, 5]), (5, [5])]:
        _, indices = session().run(None, {"x": x, "scores": scores, "drops": np.zeros(drops, np.int64)})
        assert indices.tolist() == [expected]
