# SPDX-License-Identifier: Apache-2.0
"""Robust pose estimation from correspondences with outliers, and the pose's covariance.

:func:`solve` draws hypotheses from minimal sets (RANSAC) and selects the likeliest one. :func:`refine` brings it to the
maximum of the product of Gaussian experts that :mod:`vmloc_ros.core.models.dense.correspondences` defines. Each frame
is solved on its own: neither the batch's other frames nor padding with invalid rows change it beyond rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vmloc_ros.core.models.dense.correspondences import Correspondences, log_ratio
from vmloc_ros.core.models.dense.gauss_newton import NormalEquations, orthonormal, rotated
from vmloc_ros.core.models.dense.hypotheses import draw, from_points, from_rays

__all__ = ["Correspondences", "Solution", "refine", "solve"]

_KEPT = 8  # hypotheses that are polished before the likeliest is selected
_POLISH = (4.0, 2.0, 1.0)  # factors on sigma, by step: far from the solution, residuals of inliers are large
_PREVIEW = 128  # triples of cells whose likelihood selects the kept hypotheses
_FEW_POINTS = 12  # below, hypotheses come from rays, too
_CONVERGED = 1e-7  # metres or radians


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Poses of B frames, float64. Where ``solved`` is False: the identity with a covariance of the map's extent.

    Attributes:
        rotations: ``(B, 3, 3)`` map from body.
        translations: ``(B, 3)`` metres.
        covariances: ``(B, 6, 6)`` of x, y, z and the rotation about the fixed map axes (metres, radians): the inverse
            information matrix at the solution. Information of several modalities adds up.
        inlier_share: ``(B,)`` share of the valid cells that lie within ``gate`` sigma; 0 where there are none.
        residual: ``(B,)`` root mean square of the inliers' residuals in sigma, per equation; about 1 if sigma is right.
        solved: ``(B,)`` bool: there are enough inliers, and they determine all six degrees of freedom.
    """

    rotations: Tensor
    translations: Tensor
    covariances: Tensor
    inlier_share: Tensor
    residual: Tensor
    solved: Tensor


def solve(
    c: Correspondences, *, hypotheses: int = 64, spread_m: float, iterations: int = 10, gate: float = 4.0, seed: int = 0
) -> Solution:
    """Find the likeliest pose of each frame.

    Args:
        hypotheses: minimal sets per frame. 64 suffice for 80 % outliers among measured points and 60 % among rays;
            rays with 80 % outliers need 256.
        spread_m: extent of the map, metres; outliers are taken to be uniform in it.
        iterations: largest number of steps of the last refinement.
        gate: residual in sigma at which a cell is as likely an outlier as an inlier.
        seed: of the random sets; the same seed gives the same solution.
    """
    with torch.no_grad(), torch.autocast(c.std_m.device.type, enabled=False):  # half precision is too coarse for scores
        clean = c.cleaned().to(torch.float32)
        rotations, translations, found = _hypotheses(clean, hypotheses, seed)
        sample = clean
        if rotations.shape[1] > _KEPT and clean.valid.shape[1] > 4 * _PREVIEW:
            sample = clean.picked(draw(clean, clean.valid, _PREVIEW, seed + 1).flatten(1))
        score = torch.where(found, log_ratio(sample, rotations, translations, spread_m), -1.0)
        best = score.topk(min(_KEPT, score.shape[1]), dim=1).indices
        rotations = rotations.gather(1, best[..., None, None].expand(-1, -1, 3, 3))
        translations = translations.gather(1, best[..., None].expand(-1, -1, 3))
        cells = NormalEquations.of(clean.to(torch.float64))
        rotations, translations = orthonormal(rotations.double()), translations.double()
        for scale in _POLISH:
            rotations, translations, _ = cells.step(rotations, translations, gate, scale)
        score = log_ratio(clean, rotations.float(), translations.float(), spread_m)
        winner = score.nan_to_num(nan=-1.0).argmax(dim=1)
        rows = torch.arange(len(winner), device=winner.device)
    return refine(c, rotations[rows, winner], translations[rows, winner], iterations, spread_m=spread_m, gate=gate)


def _hypotheses(c: Correspondences, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hypotheses from points, and from rays in frames that have more rays than points or few points.

    Returns:
        Rotations ``(B, H, 3, 3)``, translations ``(B, H, 3)`` and whether there is such a hypothesis ``(B, H)``.
    """
    points = c.ranged.sum(dim=1)
    rays = c.valid.sum(dim=1) - points
    wanted = (rays >= 4) & ((rays > points) | (points < _FEW_POINTS))
    if not bool(wanted.any()):
        return from_points(c, count, seed)
    if not bool(c.ranged.any()):
        return from_rays(c, count, seed, wanted)
    both = zip(from_points(c, count, seed), from_rays(c, count, seed, wanted), strict=True)
    rotations, translations, found = (torch.cat(pair, dim=1) for pair in both)
    return rotations, translations, found


def refine(
    c: Correspondences,
    rotations: Tensor,
    translations: Tensor,
    iterations: int = 10,
    *,
    spread_m: float,
    gate: float = 4.0,
    differentiable_steps: int = 3,
) -> Solution:
    """Robust weighted Gauss-Newton on SE(3) from a pose near the solution.

    Gradients pass to ``map_points_m``, ``std_m``, ``points_m`` and ``rays`` through the last ``differentiable_steps``
    only. At the solution these give the derivative of the solution itself (implicit function theorem), up to an error
    that shrinks with each step as fast as the iteration converges. The initial pose gets no gradient.

    Args:
        rotations: ``(B, 3, 3)`` map from body.
        translations: ``(B, 3)`` metres.
        iterations: largest number of steps before the differentiable ones; fewer where all frames have converged.
        spread_m: extent of the map, metres; the position's standard deviation of unsolved frames.
        gate: see :func:`solve`.
    """
    cells = NormalEquations.of(c.cleaned().to(torch.float64))
    with torch.no_grad():
        frozen = cells.detached()
        R, t = _iterated(frozen, rotations.detach(), translations.detach(), iterations, gate)
        H, _, squared, infront = frozen.normal_equations(R, t, gate)
        inlier = infront & (squared < gate**2)
        usable = frozen.determined(H, inlier, spread_m)
        eye = torch.eye(3, dtype=H.dtype, device=H.device)
        R, t = torch.where(usable[..., None, None], R, eye), torch.where(usable.unsqueeze(-1), t, 0.0)
    if cells.need_gradients and differentiable_steps > 0:
        cells = cells.only(usable)
        for _ in range(differentiable_steps):
            R, t, _ = cells.step(R, t, gate)
        H, _, squared, infront = cells.normal_equations(R, t, gate)
        inlier = infront & (squared.detach() < gate**2)
    found = (x.squeeze(1) for x in (R, t, H, squared, inlier & usable[..., None], usable))
    return _solution(cells, spread_m, *found)


def _iterated(
    cells: NormalEquations, rotations: Tensor, translations: Tensor, iterations: int, gate: float
) -> tuple[Tensor, Tensor]:
    """Rotations ``(B, 1, 3, 3)`` and translations ``(B, 1, 3)`` after Gauss-Newton steps until convergence."""
    R, t = orthonormal(rotations.double()).unsqueeze(1), translations.double().unsqueeze(1)
    for _ in range(iterations):
        R, t, change = cells.step(R, t, gate)
        if bool((change < _CONVERGED).all()):
            break
    return R, t


def _solution(
    cells: NormalEquations,
    spread_m: float,
    R: Tensor,
    t: Tensor,
    H: Tensor,
    squared: Tensor,
    inlier: Tensor,
    solved: Tensor,
) -> Solution:
    """Covariance and statistics at poses ``(B, 3, 3)`` and ``(B, 3)``.

    Args:
        H: ``(B, 6, 6)`` Hessian in body axes.
        squared: ``(B, M)`` squared residuals in sigma.
        inlier: ``(B, M)`` bool.
        solved: ``(B,)`` bool.
    """
    eye = torch.eye(6, dtype=H.dtype, device=H.device)
    # The unit matrix keeps the inverse of an unsolved frame's H, and the gradient through it, finite.
    covariance, _ = torch.linalg.inv_ex(torch.where(solved[:, None, None], rotated(H, R), eye))
    wide = torch.diag(torch.tensor([spread_m**2] * 3 + [math.pi**2] * 3, dtype=H.dtype, device=H.device))
    mean_square = torch.where(inlier, squared, 0.0).sum(dim=1) / (inlier * cells.equations).sum(dim=1).clamp_min(1)
    return Solution(
        R,
        t,
        torch.where(solved[:, None, None], (covariance + covariance.transpose(-1, -2)) / 2, wide),
        inlier.sum(dim=1) / cells.valid.sum(dim=1).clamp_min(1),
        torch.where(mean_square > 0, mean_square.clamp_min(1e-300).sqrt(), 0.0),
        solved,
    )
