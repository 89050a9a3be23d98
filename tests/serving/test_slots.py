"""Rows of the KV caches: the smallest batch that holds those in use, and clean before they are filled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.request import Request
from star_export.contract import DECODE
from star_export.serving.slots import Slots

PICTURE = Path(__file__).parents[2] / "docs/shapes.png"


@pytest.fixture(scope="module")
def mini(bundle) -> Pipeline:
    return load(bundle("mini"), threads=1)


@pytest.fixture(scope="module")
def mha(bundle) -> Pipeline:
    return load(bundle("mha"), threads=1)


def test_slots_batches_and_cleaning(mha: Pipeline) -> None:
    names = list(mha.session.contract[DECODE].caches())
    for count, sizes in {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 2, 4], 9: [1, 2, 4, 8, 9]}.items():
        slots = _slots(mha, count)
        assert [rows for _, rows in slots.batches()] == sizes
        for wanted in range(1, count + 1):
            caches, rows = slots.batch(wanted)
            assert rows == min(size for size in sizes if size >= wanted)
            assert caches.numpy(names[0]).shape[0] == rows
    slots = _slots(mha, 4)
    whole: Any = slots._caches
    for value in whole.values.values():
        value.numpy()[:] = 1
    taken: dict[int, Any] = {}
    for slot in range(4):
        assert slots.lowest_free(taken) == slot
        taken[slot] = None
    del taken[1], taken[2]
    assert slots.lowest_free(taken) == 1
    slots.spoil(2)
    slots.clean(1)
    assert all((whole.numpy(name) == 1).all() for name in names)
    slots.clean(2)
    for name in names:
        assert [set(np.unique(row)) for row in whole.numpy(name)] == [{1}, {1}, {0}, {1}]
    whole.values[names[0]].numpy()[2] = 5
    slots.clean(2)
    assert (whole.numpy(names[0])[2] == 5).all()  # once


def test_nans_left_in_a_slot_would_reach_the_next_request(mini: Pipeline) -> None:
    """Why spoiled slots are cleaned."""
    good = mini.request(PICTURE, "How many rings are there?", keep=29)
    caches = mini.session.allocate_caches(2)
    slot = caches.rows(1, 2)
    for value in slot.values.values():
        value.numpy()[1] = np.nan
    _fill(mini, good, slot)
    assert np.isnan(_next_logits(mini, good, slot)).all()
    slot.zero()
    state = _fill(mini, good, slot)
    assert np.isfinite(_next_logits(mini, good, slot)).all()
    assert state.position == good.tokens.input_ids.shape[1]
    assert not caches.rows(0, 1).numpy("past_key_values.0.key").any()  # the neighbour's


def _slots(pipeline: Pipeline, count: int) -> Slots:
    return Slots(pipeline.session, kv_bytes=count * pipeline.spec.slot_bytes, most=count)


def _fill(pipeline: Pipeline, request: Request, caches):
    vision = pipeline.steps.encode_image(*request.images)
    return pipeline.steps.prefill(request.tokens, vision, keep=request.keep, caches=caches)


def _next_logits(pipeline: Pipeline, request: Request, caches):
    state = _fill(pipeline, request, caches)
    return pipeline.steps.decode_batch(caches, np.array([5]), state.lengths[:, None]).numpy()
