"""Bundles that were built when the manifest had format 2: they open, answer as they did, and pass the check.

`tests/data` holds one that prunes and one that does not, as they were written then (but for the path
of the checkpoint they came from), with that checkpoint. They are never built again.
"""

import json
import shutil
from pathlib import Path

import pytest

from star_export import load
from star_export.bundle import open_bundle
from star_export.validation.check import check_bundle
from star_export.validation.probes import make_probes

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"
PROMPT = "What is in the picture?"
EVERY_PATCH = tuple(range(16))

#: What they answered: tokens, patches after stage 1, of these after stage 2.
ANSWERS = {
    "star": (
        (468, 232, 215, 336, 313, 50, 287, 127),
        (0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        (1, 4, 6, 10, 13),
    ),
    "full": ((228, 468, 342, 111, 111, 464, 74, 464), EVERY_PATCH, EVERY_PATCH),
}


def to_format_1(folder: Path) -> None:
    """Write what format 1 wrote at first."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["format_version"] = 1
    del manifest["contract_version"], manifest["engines"]
    del manifest["spec"]["fp32_layers"], manifest["source"]["sha256"]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ANSWERS)
def test_they_answer_as_they_did(kind: str, version: int, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / f"bundle-format-2-{kind}", tmp_path / "bundle"))
    if version == 1:
        to_format_1(folder)
    open_bundle(folder, verify=True)
    result = load(folder, threads=1).generate(ROOT / "docs/shapes.png", PROMPT).result()
    assert (result.token_ids, result.stage1_indices, result.stage2_indices) == ANSWERS[kind]


@pytest.mark.parametrize("kind", ANSWERS)
def test_they_pass_the_check(kind: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / f"bundle-format-2-{kind}", tmp_path / "bundle"))
    report = check_bundle(folder, model=str(DATA / "checkpoint-of-format-2"), probes=make_probes(1))
    assert report.passed, report
