"""The training: phases, steps, progress on disk."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Subset

from models.training.model import Outcome
from models.training.muon import Muon
from models.training.recipe import Phase, Recipe

WARMUP, LOOK_EVERY, LOOK_AT, SAVE_EVERY = 100, 250, 64, 25
PATCH_WEIGHT, NAME_WEIGHT = 0.3, 0.2  # of the heads' losses against the answers'


class Training:
    """One run: the model, its optimisers and where it stands.

    The optimisers work on float32 masters of the weights, whatever the model computes in.

    Args:
        recipe: What is trained, on what, for how long.
        folder: Where progress is kept.
        seed: Of the weights and of the pictures.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, recipe: Recipe[Any], folder: Path, *, seed: int, device: str) -> None:
        self.recipe, self.folder, self.seed, self.device = recipe, folder, seed, device
        self.dtype = _computed_in(recipe.dtype, device)
        self.progress_file = folder / "progress.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        self.processor = recipe.processor(recipe.corpus(seed))
        self.tokenizer: Tokenizer = self.processor.tokenizer.backend_tokenizer
        self.phase, self.step, self.seconds = 0, 0, 0.0
        torch.manual_seed(seed)
        self._build(recipe.beginning(self.processor))

    def _build(self, weights: dict[str, torch.Tensor]) -> None:
        """The model of the current phase; ``weights`` take the place of its own."""
        phase = self.recipe.phases[self.phase]
        student = self.recipe.student(phase.course, self.processor)
        student.load_state_dict(weights, strict=False)
        self.masters = {name: p.detach().clone().to(self.device) for name, p in student.named_parameters()}
        self.student = student.to(self.device, self.dtype)
        inner = {n for n, m in self.masters.items() if m.ndim == 2 and (".layers." in n or "projector" in n)}
        hidden = [m for n, m in self.masters.items() if n in inner]
        others = [m for n, m in self.masters.items() if n not in inner]
        self.optimizers = (
            Muon(hidden, lr=phase.rate, dtype=self.dtype),
            torch.optim.AdamW(others, lr=phase.rate, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def run(self) -> None:
        """Go on from where the last run was, to the end of the last phase."""
        self._resume()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            while True:
                self._run_phase(progress)
                if self.phase + 1 == len(self.recipe.phases):
                    return
                self.phase, self.step = self.phase + 1, 0
                course = self.recipe.phases[self.phase].course
                self._build(self.recipe.stretched(self.masters, course))

    def export(self, folder: Path) -> None:
        """Write the checkpoint in Hugging Face's layout, float16."""
        self.student.float()
        self.student.load_state_dict(self.masters, strict=False)
        vars(self.student.llava.config.text_config).pop("prefix", None)
        self.student.llava.half().save_pretrained(folder)
        self.processor.save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(0o644)

    def _run_phase(self, progress: Progress) -> None:
        phase = self.recipe.phases[self.phase]
        lessons = self.recipe.lessons(phase.course, self.tokenizer, self.seed + 1000 * self.phase)
        rest = Subset(lessons, range(self.step * phase.batch, phase.steps * phase.batch))
        task = progress.add_task(phase.name, total=phase.steps, completed=self.step)
        started = time.monotonic()
        for batch in DataLoader(rest, batch_size=phase.batch, num_workers=1, prefetch_factor=4):
            outcome = self._learn(batch, phase)
            self.step += 1
            progress.update(task, completed=self.step)
            looks = self.step % LOOK_EVERY == 0 or self.step == phase.steps
            if looks or self.step % SAVE_EVERY == 0:
                self.seconds += time.monotonic() - started
                if looks:
                    self._tell(self._look(phase, outcome), progress)
                self._save()
                started = time.monotonic()

    def _learn(self, batch: dict[str, torch.Tensor], phase: Phase[Any]) -> Outcome:
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
        moved["pixel_values"] = moved["pixel_values"].to(self.dtype)
        outcome: Outcome = self.student(moved)
        return outcome

    @torch.no_grad()
    def _look(self, phase: Phase, outcome: Outcome) -> str:
        """How it goes on the validation split."""
        lessons = self.recipe.lessons(phase.course.examination(), self.tokenizer, self.seed)
        some = Subset(lessons, range(LOOK_AT))
        seen = [(self._see(batch), batch) for batch in DataLoader(some, batch_size=16)]
        patches = torch.stack([o.right_patches for o, _ in seen]).float().mean()
        line = f"{phase.name} step {self.step}: loss of patches {outcome.patch_loss:.3f}, right {patches:.3f}"
        if phase.course.questions:
            right = torch.cat([o.right_answers.flatten() for o, _ in seen]).float().cpu()
            kinds = torch.cat([batch["kinds"].flatten() for _, batch in seen])
            names = enumerate(self.recipe.kinds)
            each = ", ".join(f"{name} {right[kinds == i].mean():.3f}" for i, name in names)
            line += f"; of names {outcome.name_loss:.3f}; of answers {outcome.answer_loss:.3f}"
            line += f", right {right.mean():.3f} ({each})"
        return f"{line}; {self.seconds / 60:.1f} min"

    def _tell(self, line: str, progress: Progress) -> None:
        """Print a line, and put it into the log."""
        progress.console.print(line)
        with (self.folder / "log.txt").open("a") as log:
            log.write(line + "\n")

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


def _computed_in(dtype: torch.dtype, device: str) -> torch.dtype:
    """``dtype``, but float32 on a CPU without bfloat16 products, where torch's own take 30 times as long."""
    if device == "cpu" and dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return dtype
