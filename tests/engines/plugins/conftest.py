"""Inputs for every way to run the kernel of star::TopKGather, and its definition in torch."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

#: ``(x, scores, k) -> (kept, indices)``; both outputs are poisoned before they are written.
Kernel = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
Scores = Callable[[torch.Generator, tuple[int, int]], torch.Tensor]

NAN, INF = float("nan"), float("inf")


def choice(*values: float) -> Scores:
    def draw(g: torch.Generator, shape: tuple[int, int]) -> torch.Tensor:
        return torch.tensor(values)[torch.randint(len(values), shape, generator=g)]

    return draw


def sprinkled(*values: float) -> Scores:
    """Random scores, two fifths of which are special ones."""

    def draw(g: torch.Generator, shape: tuple[int, int]) -> torch.Tensor:
        keep = torch.rand(shape, generator=g) < 0.6
        return torch.where(keep, torch.randn(shape, generator=g), choice(*values)(g, shape))

    return draw


def bit_patterns(g: torch.Generator, shape: tuple[int, int]) -> torch.Tensor:
    """Any float32 there is: every digit of the radix select is used, NaN of both signs and subnormals too."""
    return torch.randint(-(2**31), 2**31, shape, generator=g).to(torch.int32).view(torch.float32)


def low_bits(g: torch.Generator, shape: tuple[int, int]) -> torch.Tensor:
    """Scores that differ in their last digit only."""
    return (torch.randint(7, shape, generator=g).to(torch.int32) + 0x3F800000).view(torch.float32)


SCORES: dict[str, Scores] = {
    "random": lambda g, shape: torch.randn(shape, generator=g),
    "softmax": lambda g, shape: torch.randn(shape, generator=g).mul(3).softmax(-1),
    "ascending": lambda _, shape: torch.arange(shape[0] * shape[1]).float().view(shape),
    "many ties": choice(0.0, 1.0, 2.0, 3.0),
    "all equal": choice(0.25),
    "all NaN": choice(NAN),
    "NaN": sprinkled(NAN),
    "infinities": sprinkled(INF, -INF),
    "NaN and -inf tie": choice(NAN, -INF),
    "both zeros": choice(0.0, -0.0),
    "text always kept": sprinkled(1e30),
    "bit patterns": bit_patterns,
    "low bits": low_bits,
}


@dataclass(frozen=True)
class Case:
    """One input; ``size`` is (batch, rows, channels, k)."""

    kind: str
    size: tuple[int, int, int, int]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.size))} {str(self.dtype)[6:]}"

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` of random bytes ``[B, N, C]`` and ``scores [B, N]``."""
        batch, rows, channels, _ = self.size
        g = torch.Generator().manual_seed(sum(self.size))
        data = torch.randint(256, (batch, rows, channels * self.dtype.itemsize), generator=g)
        return data.to(torch.uint8).view(self.dtype), SCORES[self.kind](g, (batch, rows))


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CASES = [Case(kind, (2, 77, 8, k), F16) for kind in SCORES for k in (1, 20, 77)]
CASES += [
    Case("random", (1, 1, 1, 1), F16),
    Case("NaN", (1, 1, 3, 1), F32),
    Case("many ties", (1, 2929, 1, 289), F32),  # the places that stage 1 of a cut picture drops
    Case("both zeros", (3, 9, 5, 4), F16),  # 10-byte rows: copied two bytes at a time
    Case("many ties", (2, 33, 7, 12), BF16),
    Case("many ties", (2, 32, 7, 31), F32),  # 28-byte rows: four bytes at a time
    Case("random", (2, 31, 6, 11), F16),  # 12-byte rows
    Case("random", (2, 40, 24, 11), F32),
    Case("random", (5, 64, 8, 7), BF16),
    Case("softmax", (1, 576, 64, 518), F16),
    Case("text always kept", (1, 646, 40, 128), F16),
    Case("softmax", (1, 2928, 8, 640), BF16),
    Case("softmax", (1, 8192, 8, 64), F32),
    Case("bit patterns", (1, 8192, 1, 8191), F16),
    Case("many ties", (2, 9001, 2, 3000), F16),
]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Each input in turn."""
    return request.param  # type: ignore[no-any-return]


def definition(x: torch.Tensor, scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest first, NaN as -inf, ties to the lower index; then ascending."""
    ranked = scores.where(~scores.isnan(), -INF)
    indices = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :k].sort().values
    return torch.stack([rows[chosen] for rows, chosen in zip(x, indices, strict=True)]), indices


@pytest.fixture(scope="session")
def check() -> Callable[[Kernel, Case], None]:
    """``check(kernel, case)``: every index and every byte is what the definition says."""

    def run(kernel: Kernel, case: Case) -> None:
        x, scores = case.tensors()
        kept, indices = kernel(x, scores, case.size[3])
        expected_kept, expected_indices = definition(x, scores, case.size[3])
        assert indices.tolist() == expected_indices.tolist()
        assert kept.view(torch.uint8).equal(expected_kept.view(torch.uint8))

    return run


@pytest.fixture(scope="session")
def case_of() -> type[Case]:
    """Makes an input: ``case_of(kind, size, dtype)``."""
    return Case
