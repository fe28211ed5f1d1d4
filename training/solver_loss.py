# SPDX-License-Identifier: Apache-2.0
"""How likely the solver's answer makes the true pose: a loss of all cells of a frame together."""

from __future__ import annotations

import torch
from torch import Tensor

from vmloc_ros.core.models.dense.correspondences import Correspondences
from vmloc_ros.core.models.dense.solver import refine

_FREEDOM = 4.0  # degrees of it: a pose farther off than a few deviations pulls ever less
_DIMENSIONS = 6


def solver_loss(
    c: Correspondences, rotations: Tensor, translations: Tensor, spread_m: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of true poses under the product of their cells' Gaussian experts, with heavier tails.

    :func:`vmloc_ros.core.models.dense.solver.refine` starts at the truth. Of its answer's error e, in position and
    rotation, and the covariance S that it gives itself, the loss is that of a multivariate t of n = 4 degrees of
    freedom:
    ``(n + 6) / 2 log(1 + e^T S^-1 e / n) + log det S / 2``, up to a constant. So cells learn where they are wrong
    together, and deviations whose product is honest. Frames that are not solved count nothing.

    Args:
        c: of B frames.
        rotations: ``(B, 3, 3)`` true, map from body.
        translations: ``(B, 3)`` metres.
        spread_m: extent of the map.

    Returns:
        Mean over the frames that are solved, 0 where none is; and what is worth watching of these, detached: the mean
        distance ``solver_m``, and ``solver_nees``, ``e^T S^-1 e / 6``: 1 in the mean for honest covariances.
    """
    solution = refine(c, rotations, translations, spread_m=spread_m)
    turn = _rotation_vectors(rotations.double() @ solution.rotations.mT)
    error = torch.cat([translations.double() - solution.translations, turn], dim=1)
    # A covariance may have lost its last digits; the factor of the unit matrix keeps gradients finite.
    solved = solution.solved & (torch.linalg.cholesky_ex(solution.covariances.detach())[1] == 0)
    unit = torch.eye(_DIMENSIONS, dtype=error.dtype, device=error.device)
    root = torch.linalg.cholesky_ex(torch.where(solved[:, None, None], solution.covariances, unit))[0]
    squared = torch.linalg.solve_triangular(root, error.unsqueeze(-1), upper=False).square().sum(dim=(1, 2))
    log_det = 2 * torch.log(torch.diagonal(root, dim1=1, dim2=2)).sum(dim=1)
    loss = (_FREEDOM + _DIMENSIONS) / 2 * torch.log1p(squared / _FREEDOM) + log_det / 2

    def mean(x: Tensor) -> Tensor:
        return torch.where(solved, x, 0.0).sum() / solved.sum().clamp(min=1)

    watched = {"solver_m": error[:, :3].norm(dim=1), "solver_nees": squared / _DIMENSIONS}
    return mean(loss), {name: mean(x.detach()) for name, x in watched.items()}


def _rotation_vectors(rotations: Tensor) -> Tensor:
    """``(B, 3)`` along the axes of rotations ``(B, 3, 3)``, ``2 sin(angle / 2)`` long."""
    skew = torch.stack([rotations[:, i, j] - rotations[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], dim=1)
    trace = torch.diagonal(rotations, dim1=1, dim2=2).sum(dim=1, keepdim=True)
    return skew / torch.sqrt((1 + trace).clamp(min=1e-3))
