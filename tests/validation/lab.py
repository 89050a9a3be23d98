"""A bundle that tests may break, one thing at a time, and the stage at which the check notices."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from star_export.answer.pipeline import Pipeline
from star_export.bundle import Bundle, open_bundle
from star_export.engines import Runtime, open_session
from star_export.preprocessing import TokenizedPrompt
from star_export.preprocessing.processor import read_processor
from star_export.validation.parity import ParityCheck
from star_export.validation.probes import Probe
from star_export.validation.reference import Reference

Edit = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Lab:
    """A copy of a bundle that tests may break, and everything to check it with."""

    bundle: Bundle
    reference: Reference
    processor: Any
    probe: Probe
    keep: int

    def pipeline(self) -> Pipeline:
        return Pipeline(self.bundle, open_session(self.bundle, Runtime(threads=1)))

    def tokens(self) -> TokenizedPrompt:
        pipeline = self.pipeline()
        return pipeline.tokenize(self.probe.prompt, pipeline.prepare(self.probe.pictures))

    def failed(self, pipeline: Pipeline | None = None) -> list[str]:
        """Stages that fail, in order."""
        check = ParityCheck(pipeline or self.pipeline(), self.reference, self.processor, max_new_tokens=3)
        return [s.stage for s in check.run(self.probe, self.keep).stages if s.status == "fail"]


def make_lab(bundle: Path, checkpoint: Path, folder: Path, probe: Probe, *, keep: int = 64) -> Lab:
    """A copy of ``bundle`` in ``folder``."""
    copy = shutil.copytree(bundle, folder / "broken")
    # Opened where it is whole, then moved: open_bundle refuses changed files.
    opened = replace(open_bundle(bundle), folder=copy)
    return Lab(opened, Reference(checkpoint), read_processor(checkpoint), probe, keep)


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    whole = path.read_bytes()
    assert content != whole
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(whole)


def table(content: bytes) -> tuple[int, dict[str, Any]]:
    """Where a safetensors file's data starts, and what it holds."""
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    del entries["__metadata__"]
    return start, entries


@contextmanager
def changed_weight(path: Path, name: str, row: int = 0) -> Iterator[None]:
    """The first element of a row, raised by the tensor's largest magnitude."""
    content = bytearray(path.read_bytes())
    start, entries = table(content)
    entry = entries[name]
    tensor = np.ndarray(entry["shape"], np.float32, content, start + entry["data_offsets"][0])
    tensor.reshape(len(tensor), -1)[row, 0] += np.abs(tensor).max()
    with changed(path, bytes(content)):
        yield


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def producer(model: onnx.ModelProto, value: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if value in node.output)


def constant(model: onnx.ModelProto, values: list[int]) -> str:
    name = f"broken_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def first_failure(lab: Lab, graph: str, edit: Edit) -> str | None:
    path = lab.bundle.graph_path(graph)
    model = onnx.load(path, load_external_data=False)
    edit(model)
    with changed(path, model.SerializeToString()):
        return next(iter(lab.failed()), None)
