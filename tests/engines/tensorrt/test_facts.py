import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from star_export.bundle import Bundle, open_bundle
from star_export.engines.tensorrt.facts import EngineFacts, Profile, check_runnable, engine_path
from star_export.errors import BundleError
from star_export.typed import convert

FACTS = EngineFacts(
    backend="tensorrt",
    version="10.16.1.11",
    targets=("sm89",),
    plugins="aot",
    version_compatible=False,
    weight_streaming=False,
    driver="13.0",
    profiles={"decode": {"input_ids": Profile((1, 1), (1, 1), (8, 1))}},
    files={graph: engine_path("tensorrt", graph) for graph in ("vision", "prefill", "decode")},
)


@pytest.fixture
def opened(bundle: Callable[..., Path]) -> Bundle:
    return open_bundle(bundle("mha"))


def test_facts_survive_json() -> None:
    assert convert(json.loads(json.dumps(FACTS.to_dict())), EngineFacts) == FACTS
    assert FACTS.max_batch == 8


@pytest.mark.parametrize(
    ("facts", "version", "capability"),
    [
        (FACTS, "10.16.1.11", (8, 9)),
        (replace(FACTS, targets=("sm80+",)), "10.16.1.11", (12, 0)),
        (replace(FACTS, version_compatible=True), "10.17.0.1", (8, 9)),
        (replace(FACTS, backend="tensorrt-rtx", targets=("sm86", "sm89")), "10.16.1.11", (8, 9)),
    ],
)
def test_engines_that_fit(
    opened: Bundle, facts: EngineFacts, version: str, capability: tuple[int, int]
) -> None:
    check_runnable(opened, facts, version=version, capability=capability)


@pytest.mark.parametrize(
    ("facts", "version", "capability", "parts"),
    [
        (
            FACTS,
            "10.16.2.1",
            (8, 9),
            ("built by tensorrt 10.16.1.11, this machine has 10.16.2.1", "--from-bundle"),
        ),
        (replace(FACTS, version_compatible=True), "11.0.0.1", (8, 9), ("this machine has 11.0.0.1",)),
        (replace(FACTS, version_compatible=True), "10.15.0.1", (8, 9), ("this machine has 10.15.0.1",)),
        (FACTS, "10.16.1.11", (9, 0), ("built for sm89, this GPU is sm90", "--backend tensorrt")),
        (replace(FACTS, targets=("sm80+",)), "10.16.1.11", (7, 5), ("built for sm80+, this GPU is sm75",)),
        (
            replace(FACTS, backend="tensorrt-rtx"),
            "10.16.1.11",
            (12, 0),
            ("this GPU is sm120", "--backend tensorrt-rtx --target sm120"),
        ),
        (
            replace(FACTS, backend="tensorrt-rtx"),
            "10.16.1.11",
            (9, 0),
            ("tensorrt-rtx does not build for it", "--backend tensorrt"),
        ),
    ],
)
def test_engines_that_do_not(
    opened: Bundle, facts: EngineFacts, version: str, capability: tuple[int, int], parts: tuple[str, ...]
) -> None:
    with pytest.raises(BundleError) as caught:
        check_runnable(opened, facts, version=version, capability=capability)
    for part in (*parts, f"star-export build --from-bundle {opened.folder}"):
        assert part in str(caught.value)
