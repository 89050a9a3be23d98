"""Several tokens appended in one run of decode are what they are one after the other."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from star_export.answer.steps import batched
from star_export.contract import DECODE, capacity_symbols, contract
from star_export.specs import ExportSpec
from tests.graphs.random_graphs import export_random, small, small_spec
from tests.shapes import NEXT, ONEVISION

#: Tokens in each group's caches of two sequences before the first that is appended.
LENGTHS = {"early_lengths": [30, 7], "late_lengths": [11, 3]}
TOKENS = np.array([[3, 17, 99, 4, 17], [8, 8, 1, 60, 2]])


@pytest.fixture(scope="module", params=[("next", True), ("onevision", False)], ids=["star", "unpruned"])
def decode(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExportSpec, ort.InferenceSession]:
    """A graph of two layer groups, and one of one group with biases."""
    name, prune = request.param
    spec = small_spec(small(NEXT if name == "next" else ONEVISION), prune=prune)
    path: Path = export_random(spec, DECODE, tmp_path_factory.mktemp("decode"))
    return spec, ort.InferenceSession(path)


def fresh(spec: ExportSpec) -> dict[str, Any]:
    """Filled caches of two sequences; what is free in them is as full as the rest."""
    random, tensors = np.random.default_rng(0), contract(spec)[DECODE].inputs
    sizes = {"B": 2} | dict(zip(capacity_symbols(spec), spec.capacities, strict=True))
    return {
        t.name: random.standard_normal([sizes.get(str(d), d) for d in t.shape]).astype(np.float32)
        for t in tensors
        if t.name.startswith("past")
    }


def run(
    decode: tuple[ExportSpec, ort.InferenceSession], caches: dict[str, Any], tokens: Any, done: int
) -> tuple[Any, dict[str, Any]]:
    """Logits and caches after ``tokens [2, C]``, of which ``done`` came before."""
    spec, session = decode
    io = contract(spec)[DECODE]
    lengths = {name: np.array(given) + done for name, given in LENGTHS.items()}
    positions = lengths["early_lengths"][:, None] + np.arange(tokens.shape[1])
    feeds = {"input_ids": tokens, "position_ids": positions, **lengths, **caches}
    found = session.run(None, {tensor.name: feeds[tensor.name] for tensor in io.inputs})
    outputs = dict(zip((tensor.name for tensor in io.outputs), found, strict=True))
    return outputs["logits"], {past: outputs[present] for present, past in io.aliases.items()}


@pytest.mark.parametrize("parts", [(5,), (2, 3), (1, 4), (4, 1)])
def test_together_is_one_after_the_other(
    decode: tuple[ExportSpec, ort.InferenceSession], parts: tuple[int, ...]
) -> None:
    alone, caches = None, fresh(decode[0])
    for place in range(5):
        alone, caches = run(decode, caches, TOKENS[:, place : place + 1], place)
    together, found, done = None, fresh(decode[0]), 0
    for size in parts:
        together, found = run(decode, found, TOKENS[:, done : done + size], done)
        done += size
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    for name, cache in caches.items():
        np.testing.assert_allclose(found[name], cache, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_token_sees_those_before_it_and_none_behind(
    decode: tuple[ExportSpec, ort.InferenceSession],
) -> None:
    spec, caches = decode[0], fresh(decode[0])
    _, first = run(decode, caches, TOKENS, 0)
    other = TOKENS.copy()
    other[:, 3] += 1
    _, second = run(decode, caches, other, 0)
    deep = f"past_key_values.{spec.model.text.num_layers - 1}.value"
    start = LENGTHS["late_lengths" if spec.schedule else "early_lengths"]
    for sequence, begin in enumerate(start):
        changed = (first[deep][sequence] != second[deep][sequence]).any(axis=(0, 2))
        assert np.flatnonzero(changed).tolist() == [begin + 3, begin + 4]


def test_sixty_four_at_a_time() -> None:
    values = tuple(range(150))
    assert [len(part) for part in batched(values, 64)] == [64, 64, 22]
    assert sum(batched(values, 64), ()) == values
    assert list(batched(values[:64], 64)) == [values[:64]]
    assert list(batched((), 64)) == []
    assert list(batched((5, 6), 1)) == [(5,), (6,)]


def test_caches_of_any_size_give_the_same(decode: tuple[ExportSpec, ort.InferenceSession]) -> None:
    """With room for what is there and two tokens more, and for as many as the bundle allows."""
    spec, tokens, roomy = decode[0], TOKENS[:, :2], fresh(decode[0])
    most = {symbol: max(given) + 2 for symbol, given in zip(("L1", "L2"), LENGTHS.values(), strict=True)}
    room = {tensor.name: most[str(tensor.shape[2])] for tensor in contract(spec)[DECODE].caches().values()}
    tight = {name: np.ascontiguousarray(cache[:, :, : room[name]]) for name, cache in roomy.items()}
    expected, _ = run(decode, roomy, tokens, 0)
    found, caches = run(decode, tight, tokens, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert {name: cache.shape[2] for name, cache in caches.items()} == room
