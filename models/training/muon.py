"""Muon for the layers' matrices: `torch.optim.Muon` computes in bfloat16, which most CPUs are slow at."""

from collections.abc import Iterable

import torch

_A, _B, _C = 3.4445, -4.775, 2.0315  # of the Newton-Schulz iteration that Muon is published with
_MOMENTUM, _STEPS, _WEIGHT_DECAY = 0.95, 5, 0.02


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonal matrix next to the momentum, as large as AdamW's.

    Args:
        parameters: Matrices.
        lr: Learning rate.
        dtype: What the orthogonal matrix is computed in.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], *, lr: float, dtype: torch.dtype) -> None:
        super().__init__(parameters, {"lr": lr})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step for every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - _MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, _MOMENTUM).to(self.dtype))
                matrix.mul_(1 - group["lr"] * _WEIGHT_DECAY)
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly the orthogonal matrix next to one: singular values become about 1."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), wide, beta=_A)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
