"""The systems that a benchmark compares, each timed through the same four numbers."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from star_export.answer.pipeline import open_pipeline
from star_export.bundle import open_bundle
from star_export.engines import Runtime, free_device_memory
from star_export.errors import PlatformError
from star_export.measure.workload import Sample, Side, Workload, make_sample
from star_export.memory import resident_bytes
from star_export.specs import Keep

PRUNED, UNPRUNED, HF_SDPA, HF_EAGER = SIDES = ("pruned", "unpruned", "hf-sdpa", "hf-eager")

_PATHS = ("bundle", "baseline", "checkpoint", "picture", "plugin_library")


class BundleSide(Side):
    """A bundle, through the pipeline users run."""

    def __init__(self, folder: Path, workload: Workload, *, keep: Keep | None) -> None:
        self.pipeline = open_pipeline(folder, workload.runtime)
        self.keep = keep

    def measure(self, workload: Workload) -> Sample:
        """Answer once and take the time."""
        start = time.perf_counter()
        images = self.pipeline.prepare(workload.picture)
        tokens = self.pipeline.tokenize(workload.text, images, keep=self.keep)
        ready = time.perf_counter()
        visions = self.pipeline.steps.encode_images(images, self.keep)
        self.pipeline.session.synchronize()
        seen = time.perf_counter()
        steps, room = self.pipeline.steps, workload.new_tokens + 1
        state = steps.prefill(tokens, *visions, keep=self.keep, new_tokens=room)
        token = state.best_token()
        first = time.perf_counter()
        for _ in range(workload.new_tokens):
            self.pipeline.steps.decode(state, token)
            token = state.best_token()
        return make_sample(start, ready, seen, first, workload.new_tokens)

    def close(self) -> None:
        """Let go of the bundle."""
        self.pipeline.close()


def side_device(name: str, runtime: Runtime) -> str:
    """``cpu`` or ``cuda``: Hugging Face runs where the bundle does, if torch finds the GPU too."""
    device = runtime.entry.device
    if device == "cpu" or not name.startswith("hf-"):
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def open_side(name: str, workload: Workload) -> Side:
    """Load one of :data:`SIDES`, or another bundle of the workload."""
    if name in workload.others:
        folder = workload.others[name]
        prunes = open_bundle(folder).spec.schedule
        return BundleSide(folder, workload, keep=workload.asked if prunes else None)
    if name in (PRUNED, UNPRUNED):
        folder, keep = (workload.bundle, workload.keep) if name == PRUNED else (workload.baseline, None)
        return BundleSide(folder, workload, keep=keep)
    # Only here: a process that measures a bundle's memory must not carry torch.
    from star_export.measure.huggingface import HuggingFaceSide

    device = side_device(name, workload.runtime)
    return HuggingFaceSide(
        workload.checkpoint,
        attention=name.removeprefix("hf-"),
        threads=workload.runtime.threads,
        device=device,
        dtype="float32" if device == "cpu" else open_bundle(workload.bundle).spec.dtype,
    )


@dataclass(frozen=True)
class Memory:
    """What a fresh process takes that loads one side and answers once.

    Attributes:
        resident: Peak resident bytes; None where the system does not tell.
        device: Bytes of GPU memory, the CUDA context aside; None when nothing runs on a GPU.
    """

    resident: int | None
    device: int | None


def peak_memory(name: str, workload: Workload) -> Memory:
    """Memory of a fresh process that loads one side and answers once.

    Raises:
        PlatformError: If the process fails, for want of memory say.
    """
    request = json.dumps({"name": name, **asdict(workload)}, default=str)
    command = [sys.executable, "-m", __name__, request]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PlatformError(f"the process that measures {name} ended with {done.returncode}: {reason}")
    return Memory(**json.loads(done.stdout))


def _main(request: str) -> None:
    fields: dict[str, Any] = json.loads(request)
    name = fields.pop("name")
    runtime = Runtime(**_with_paths(fields.pop("runtime")))
    others = {other: Path(folder) for other, folder in fields.pop("others").items()}
    workload = Workload(**_with_paths(fields), runtime=runtime, others=others)
    on_gpu = side_device(name, runtime) == "cuda"
    before = free_device_memory() if on_gpu else 0
    with open_side(name, workload) as side:
        side.measure(workload)
        device = before - free_device_memory() if on_gpu else None
    print(json.dumps(asdict(Memory(resident_bytes("peak"), device))))


def _with_paths(fields: dict[str, Any]) -> dict[str, Any]:
    """Values as they were before they were JSON: paths, and tuples of budgets."""
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    paths = {name: Path(fields[name]) for name in _PATHS if fields.get(name) is not None}
    return fields | lists | paths


if __name__ == "__main__":
    _main(sys.argv[1])
