"""The low-rank correction of a linear layer that errs least on the inputs that the layer really gets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

EXACT = 1024  # largest smaller side of a matrix whose singular values are all computed
EXTRA, ROUNDS = 16, 6  # directions and rounds beyond the asked for, where they are not


class Moments:
    """Second moments S = E[x x'] of a layer's inputs."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.sum = torch.zeros(inputs, inputs, device=device)

    def add(self, x: Tensor) -> None:
        """Count inputs (..., in)."""
        rows = x.reshape(-1, x.shape[-1]).float()
        self.sum.addmm_(rows.T, rows)

    def root(self, ridge: float) -> Tensor:
        """L with L L' = S, after `ridge` times the mean of S's diagonal is added to it.

        So directions that no input showed count too. The ridge grows until S can be factored in fp32.
        """
        size = self.sum.diagonal().mean()
        while True:
            floor = torch.full_like(self.sum[0], float(size * ridge + 1e-12))
            root: Tensor
            root, failed = torch.linalg.cholesky_ex(self.sum + floor.diag())
            if not failed or ridge > 1:
                return root
            ridge *= 10


def solve(off: Tensor, moments: Moments, rank: int, ridge: float) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) that minimise E |(D - B A) x|^2 over the inputs x, D being `off` (out, in).

    With S = L L' that is |(D - B A) L|, so the best B A L are the largest singular directions of D L.
    """
    root = moments.root(ridge)
    left, sizes, right = largest(off @ root, rank)
    lora_a = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    # rows of A and columns of B of one size, so that neither loses more by rounding
    balance = (sizes / lora_a.norm(dim=1).clamp_min(1e-20)).sqrt()
    return lora_a * balance[:, None], left * (sizes / balance.clamp_min(1e-20))


def largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` largest singular directions (out, rank), values (rank,) and directions (rank, in); zeros fill up."""
    if min(matrix.shape) <= EXACT:
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        draws = torch.Generator().manual_seed(0)
        start = torch.randn(matrix.shape[1], rank + EXTRA, generator=draws).to(matrix)
        basis = torch.linalg.qr(matrix @ start).Q
        for _ in range(ROUNDS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        inner, sizes, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        left = basis @ inner
    short = max(0, rank - len(sizes))
    return pad(left[:, :rank], (0, short)), pad(sizes[:rank], (0, short)), pad(right[:rank], (0, 0, 0, short))
