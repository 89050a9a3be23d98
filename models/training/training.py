"""The training: phases, steps, progress on disk.

The vision tower learns to tell what each patch shows; the whole model learns to
answer, on pictures of 12 x 12 patches; then on pictures of 24 x 24 patches,
with interpolated position embeddings; and at last to read early what it answers.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Subset
from transformers import LlavaProcessor

from models.training.lessons import PREFIX, WEIGHTS, Course, Lessons
from models.training.model import Outcome, Student, stretched
from models.training.network import make_config, make_processor
from star_export.evaluation.shapes.questions import KINDS, ask
from star_export.evaluation.shapes.scenes import random_scene, rng_of


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of the training.

    Attributes:
        name: Shown in the log.
        course: What is looked at.
        steps: Optimiser steps.
        batch: Pictures a step.
        rate: Learning rate.
        decay: Steps at the end over which the rate falls to zero.
    """

    name: str
    course: Course
    steps: int
    batch: int
    rate: float
    decay: int = 0


PHASES = (
    Phase(name="vision, 12x12", course=Course(canvas=48, questions=0), steps=1500, batch=32, rate=2e-3),
    Phase(
        name="answers, 12x12, few flipped",
        course=Course(canvas=48, questions=10, flipped=0.1),
        steps=1000,
        batch=32,
        rate=2e-3,
    ),
    Phase(name="answers, 12x12", course=Course(canvas=48, questions=10), steps=1000, batch=32, rate=2e-3),
    Phase(
        name="answers, 24x24",
        course=Course(canvas=96, questions=16),
        steps=1500,
        batch=8,
        rate=1.5e-3,
        decay=500,
    ),
    Phase(
        name="answers, 24x24, halfway",
        course=Course(canvas=96, questions=16, halfway=True),
        steps=500,
        batch=8,
        rate=1.5e-3,
        decay=400,
    ),
)
WARMUP, LOOK_EVERY, LOOK_AT = 100, 250, 64
PATCH_WEIGHT, NAME_WEIGHT = 0.3, 0.2  # of the heads' losses against the answers'


def corpus(seed: int) -> list[str]:
    """Sentences of the training split, from which the tokenizer takes its words."""
    sentences = ["USER: ASSISTANT:"] * 2000
    for index in range(3000):
        rng = rng_of("train", seed, index)
        scene = random_scene(rng)
        asked = [ask(scene, kind, rng) for kind in KINDS]
        sentences += [f"\n{q.text} ASSISTANT: {q.answer}" for q in asked if q is not None]
    return sentences


class Training:
    """One run: the model, its optimisers and where it stands.

    The model computes in bfloat16; the optimisers work on float32 masters of its weights.

    Args:
        folder: Where progress is kept.
        seed: Of the weights and of the pictures.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, folder: Path, *, seed: int, device: str) -> None:
        self.folder, self.seed, self.device = folder, seed, device
        self.progress_file = folder / "progress.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        self.processor: LlavaProcessor = make_processor(corpus(seed), image_size=PHASES[-1].course.canvas)
        self.tokenizer: Tokenizer = self.processor.tokenizer.backend_tokenizer
        self.phase, self.step, self.seconds = 0, 0, 0.0
        torch.manual_seed(seed)
        self._build({})

    def _build(self, weights: dict[str, torch.Tensor]) -> None:
        """The model of the current phase; ``weights`` take the place of its own."""
        config = make_config(
            image_size=PHASES[self.phase].course.canvas,
            vocab=-(-len(self.processor.tokenizer) // 16) * 16,
            image_token_id=self.processor.tokenizer.convert_tokens_to_ids("<image>"),
        )
        student = Student(config, torch.tensor(self.tokenizer.encode(PREFIX).ids[:-1]))
        student.load_state_dict(weights, strict=False)
        self.masters = {name: p.detach().clone().to(self.device) for name, p in student.named_parameters()}
        self.student = student.to(self.device, torch.bfloat16)
        inner = {n for n, m in self.masters.items() if m.ndim == 2 and (".layers." in n or "projector" in n)}
        rate = PHASES[self.phase].rate
        hidden = [m for n, m in self.masters.items() if n in inner]
        others = [m for n, m in self.masters.items() if n not in inner]
        self.optimizers = (
            torch.optim.Muon(hidden, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def run(self) -> None:
        """Go on from where the last run was, to the end of the last phase."""
        self._resume()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            while True:
                self._run_phase(progress)
                if self.phase + 1 == len(PHASES):
                    return
                self.phase, self.step = self.phase + 1, 0
                canvas = PHASES[self.phase].course.canvas
                self._build(stretched(self.masters, canvas))

    def export(self, folder: Path) -> None:
        """Write the checkpoint in Hugging Face's layout, float16."""
        self.student.float()
        self.student.load_state_dict(self.masters, strict=False)
        del self.student.llava.config.text_config.prefix
        self.student.llava.half().save_pretrained(folder)
        self.processor.save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(0o644)

    def _run_phase(self, progress: Progress) -> None:
        phase = PHASES[self.phase]
        lessons = Lessons(phase.course, self.tokenizer, self.seed + 1000 * self.phase)
        rest = Subset(lessons, range(self.step * phase.batch, phase.steps * phase.batch))
        task = progress.add_task(phase.name, total=phase.steps, completed=self.step)
        started = time.monotonic()
        for batch in DataLoader(rest, batch_size=phase.batch, num_workers=1, prefetch_factor=4):
            outcome = self._learn(batch, phase)
            self.step += 1
            progress.update(task, completed=self.step)
            if self.step % LOOK_EVERY == 0 or self.step == phase.steps:
                self.seconds += time.monotonic() - started
                line = self._look(phase, outcome)
                progress.console.print(line)
                with (self.folder / "log.txt").open("a") as log:
                    log.write(line + "\n")
                self._save()
                started = time.monotonic()

    def _learn(self, batch: dict[str, torch.Tensor], phase: Phase) -> Outcome:
        """One step."""
        fade = (phase.steps - self.step) / phase.decay if phase.decay else 1.0
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = phase.rate * min(1.0, (self.step + 1) / WARMUP, fade)
        outcome = self._see(batch)
        practice = PATCH_WEIGHT * outcome.patch_loss + NAME_WEIGHT * outcome.name_loss
        (outcome.answer_loss + practice).backward()
        pairs = [(self.masters[name], p) for name, p in self.student.named_parameters()]
        for master, weight in pairs:
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for master, weight in pairs:
                weight.copy_(master)
        return outcome

    def _see(self, batch: dict[str, torch.Tensor]) -> Outcome:
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        moved["pixel_values"] = moved["pixel_values"].to(torch.bfloat16)
        outcome: Outcome = self.student(moved)
        return outcome

    @torch.no_grad()
    def _look(self, phase: Phase, outcome: Outcome) -> str:
        """How it goes on the validation split."""
        course = replace(phase.course, flipped=1.0, split="validation")
        some = Subset(Lessons(course, self.tokenizer, self.seed), range(LOOK_AT))
        seen = [(self._see(batch), batch) for batch in DataLoader(some, batch_size=16)]
        patches = torch.stack([o.right_patches for o, _ in seen]).float().mean()
        line = f"{phase.name} step {self.step}: loss of patches {outcome.patch_loss:.3f}, right {patches:.3f}"
        if phase.course.questions:
            right = torch.cat([o.right_answers.flatten() for o, _ in seen]).float().cpu()
            kinds = torch.cat([batch["kinds"].flatten() for _, batch in seen])
            each = ", ".join(f"{name} {right[kinds == i].mean():.3f}" for i, name in enumerate(WEIGHTS))
            line += f"; of names {outcome.name_loss:.3f}; of answers {outcome.answer_loss:.3f}"
            line += f", right {right.mean():.3f} ({each})"
        return f"{line}; {self.seconds / 60:.1f} min"

    def _save(self) -> None:
        """Write everything needed to go on, whole or not at all."""
        tensors = {f"model.{name}": master for name, master in self.masters.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{k}": torch.as_tensor(v) for k, v in values.items()}
        where = {"phase": self.phase, "step": self.step, "seconds": self.seconds, "seed": self.seed}
        temporary = self.progress_file.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"where": json.dumps(where)})
        temporary.replace(self.progress_file)

    def _resume(self) -> None:
        """Take up what :meth:`_save` left, if there is something."""
        if not self.progress_file.exists():
            return
        with safe_open(self.progress_file, "pt") as file:
            where = json.loads(file.metadata()["where"])
        if where["seed"] != self.seed:
            raise SystemExit(
                f"{self.progress_file} was trained with --seed {where['seed']}; "
                "give that seed, or name another --work"
            )
        tensors = load_file(self.progress_file, device=self.device)
        self.phase, self.step, self.seconds = where["phase"], where["step"], where["seconds"]
        self._build({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{i}."):
                    _, _, parameter, name = key.split(".")
                    state.setdefault(int(parameter), {})[name] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
