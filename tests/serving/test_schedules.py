"""Several layer groups and a budget for every stage, through scheduler, service and conversation."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from star_export.answer.pipeline import Pipeline, load
from star_export.errors import InputError, SettingsError
from star_export.serving.query import Query
from star_export.serving.scheduler import Scheduler
from star_export.specs import Keep
from star_export.validation.probes import make_probes

PROMPT = "What is in the picture?"
#: Of 64 visual tokens and 3 layers; some change what stage 1 keeps.
BUDGETS: tuple[Keep | None, ...] = (None, 4, (30, 20, 5), (25, 15, 7), (25, 15, 2), (6, 5, 4))


@pytest.fixture(scope="module")
def pipeline(bundle: Callable[..., Path]) -> Pipeline:
    return load(bundle("vicuna", schedule="30@0,20@1,10@2", stage1="peaks", stage2="last"), threads=1)


def picture() -> Image.Image:
    return make_probes(1)[0].pictures[0]


def test_requests_of_all_budgets_share_a_batch(pipeline: Pipeline) -> None:
    alone = [
        pipeline.generate(picture(), PROMPT, keep=keep, max_new_tokens=6).result().token_ids
        for keep in BUDGETS
    ]
    assert len(set(alone)) > 2
    with Scheduler(pipeline, slots=4) as scheduler:
        asked = [pipeline.request(picture(), PROMPT, keep=keep, max_new_tokens=6) for keep in BUDGETS]
        tickets = [scheduler.submit(request) for request in asked]
        assert [ticket.answer().token_ids for ticket in tickets] == alone
        usage = [ticket.answer().usage for ticket in tickets]
    assert [(found.stage1_tokens, found.stage2_tokens) for found in usage if found] == [
        (30, 10), (30, 4), (30, 5), (25, 7), (25, 2), (6, 4),
    ]  # fmt: skip
    assert (scheduler.features.hits, scheduler.features.misses) == (
        3,
        3,
    )  # one for each number that stage 1 keeps


def test_usage_counts_the_caches_of_all_groups(pipeline: Pipeline) -> None:
    request = pipeline.request(picture(), PROMPT, keep=(25, 15, 7), max_new_tokens=1)
    with Scheduler(pipeline, slots=1) as scheduler:
        usage = scheduler.submit(request).answer().usage
    text = request.tokens.text_tokens
    assert usage is not None
    assert usage.kv_bytes == pipeline.spec.sequence_bytes((text + 25, text + 15, text + 7))


def test_a_conversation_changes_every_budget(pipeline: Pipeline) -> None:
    chat = pipeline.chat(images=[picture()], keep=(25, 15, 7), max_new_tokens=3)
    first = chat.send(PROMPT).result()
    assert (len(first.stage1_indices), len(first.stage2_indices)) == (25, 7)
    chat.keep = (20, 10, 5)  # which sees the picture again
    again = chat.send("And now?").result()
    assert (len(again.stage1_indices), len(again.stage2_indices)) == (20, 5)
    assert chat.stats().prefills == 2
    whole = pipeline.generate(picture(), [*chat.messages][:-1], keep=(20, 10, 5), max_new_tokens=3).result()
    assert whole.token_ids == again.token_ids
    with pytest.raises(SettingsError, match="keep=20,10 has 2 budgets"):
        chat.keep = (20, 10)
    assert chat.keep == (20, 10, 5)


def test_a_query_takes_a_number_or_a_list() -> None:
    plain = {"image": b"x", "prompt": PROMPT}
    assert Query.of({**plain, "keep": (25, 15, 7)}).keep == (25, 15, 7)
    assert Query.of({**plain, "keep": 7}) == Query(image=b"x", prompt=PROMPT, keep=7)
    with pytest.raises(InputError, match="keep: expected"):
        Query.of({**plain, "keep": "7"})
