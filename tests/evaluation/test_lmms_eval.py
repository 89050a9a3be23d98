"""lmms-eval itself, where it is installed, on a bundle and a task of its own format."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.answer.pipeline import load
from star_export.errors import SettingsError
from star_export.evaluation.shapes import Shapes

pytest.importorskip("lmms_eval", reason="needs star-export[lmms-eval]")

TASK = """
task: tiny_shapes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {docs}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: "question"
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 8
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["path"]).convert("RGB")]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of lmms-eval: seven questions about drawn pictures."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    docs = []
    for index in range(7):
        example = Shapes().example("test", 0, index)
        example.image.save(folder / f"{index}.png")
        docs.append(
            {"path": str(folder / f"{index}.png"), "question": example.question, "answer": example.answer}
        )
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "tiny_shapes.yaml").write_text(TASK.format(docs=folder / "docs.jsonl"))
    (folder / "utils.py").write_text(UTILS)
    return folder


def test_lmms_eval_gets_the_bundles_answers(bundle: Callable[..., Path], tasks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lmms_eval", "--model", "star_export", "--tasks", "tiny_shapes"]
    command += ["--model_args", f"bundle={bundle('mini')},keep=29,threads=1", "--include_path", str(tasks)]
    command += ["--batch_size", "3", "--log_samples", "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "out").rglob("*samples_tiny_shapes.jsonl")
    found = {
        row["doc_id"]: row["filtered_resps"] for row in map(json.loads, samples.read_text().splitlines())
    }
    with load(bundle("mini"), threads=1) as pipeline:
        for index in range(7):
            example = Shapes().example("test", 0, index)
            said = pipeline.generate(example.image, example.question, keep=29, max_new_tokens=8).result()
            assert found[index] in (said.text, [said.text])
    (results,) = (tmp_path / "out").rglob("*results.json")
    score = json.loads(results.read_text())["results"]["tiny_shapes"]["exact_match,none"]
    assert score > 0.7


def test_what_a_bundle_cannot_do(bundle: Callable[..., Path]) -> None:
    from star_export.evaluation.lmms import StarExport

    with pytest.raises(SettingsError, match="batch_size must be a number from 1, got auto"):
        StarExport(str(bundle("mini")), batch_size="auto")
    model = StarExport(str(bundle("mini")), threads=1)
    try:
        with pytest.raises(SettingsError, match="generate_until"):
            model.loglikelihood([])
        with pytest.raises(SettingsError, match="one question"):
            model.generate_until_multi_round([])
        assert model.generate_until([]) == []
    finally:
        model.clean()
