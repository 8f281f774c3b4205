"""The low-rank correction of a linear layer that errs least on the inputs that the layer really gets."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = 1024  # largest smaller side of a matrix whose singular values are all computed
EXTRA, ROUNDS = 16, 6  # directions and rounds beyond the asked for, where they are not


class Moments:
    """Second moments of a layer's inputs: E[x x'] of the student's x, and E[z x'] with the teacher's z beside it."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.own = torch.zeros(inputs, inputs, device=device)
        self.cross = torch.zeros(inputs, inputs, device=device)

    def add(self, teacher: Tensor, student: Tensor) -> None:
        """Count inputs (..., in) of the same tokens in both."""
        z, x = (one.reshape(-1, one.shape[-1]).float() for one in (teacher, student))
        self.own.addmm_(x.T, x)
        self.cross.addmm_(z.T, x)


def solve(full: Tensor, held: Tensor, moments: Moments, rank: int, ridge: float) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) that minimise |W z - (V + B A) x| over the inputs, W being `full` and V `held`.

    With S = E[x x'] and T = E[z x'] the best correction of any rank is D = (W T - V S) / S, and the best of a rank is
    D's largest singular directions where inputs are measured by S: with S = L L', those of D L, brought back by 1 / L.
    `ridge`, a share of the mean of S's diagonal, is added to both S and T: directions that the inputs do not show are
    corrected towards W - V.
    """
    own, cross, root = _regular(moments, ridge)
    # (W T - V S) / S * L = (W T - V S) / L'
    wanted = torch.linalg.solve_triangular(root.T, full.float() @ cross - held.float() @ own, upper=True, left=False)
    left, sizes, right = largest(wanted, rank)
    lora_a = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    # rows of A and columns of B of one size, so that neither loses more by rounding
    balance = (sizes / lora_a.norm(dim=1).clamp_min(1e-20)).sqrt()
    return lora_a * balance[:, None], left * (sizes / balance.clamp_min(1e-20))


def _regular(moments: Moments, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """S and T with the ridge on their diagonals, and L; the ridge grows until S can be factored in fp32."""
    size, one = moments.own.diagonal().mean(), torch.eye(len(moments.own), device=moments.own.device)
    while True:
        floor = one * (size * ridge + 1e-12)
        root, failed = torch.linalg.cholesky_ex(moments.own + floor)
        if not failed or ridge > 1:
            return moments.own + floor, moments.cross + floor, root
        ridge *= 10


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
    pad = torch.nn.functional.pad
    return pad(left[:, :rank], (0, short)), pad(sizes[:rank], (0, short)), pad(right[:rank], (0, 0, 0, short))
