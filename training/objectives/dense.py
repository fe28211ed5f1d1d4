# SPDX-License-Identifier: Apache-2.0
"""Training of dense map coordinates: their likelihood, and features of frozen trunks computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.frozen_features import PrecomputedFeatures
from training.objectives.base import Objective, ObjectiveConfig, Terms
from vmloc_ros.core.models import DenseModel, ModelInput
from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.models.dense.correspondences import Correspondences
from vmloc_ros.core.models.dense.model import correspondences
from vmloc_ros.core.models.dense.solver import refine
from vmloc_ros.core.models.rotation import quaternion_exp, quaternion_product, rotation_matrix
from vmloc_ros.core.pose_codec import PoseCodec

_FREEDOM = 4.0  # degrees of it: a pose farther off than a few deviations pulls ever less
_DIMENSIONS = 6

_BATCH = 16
_LEAST_DEPTH_M = 0.1
# Mean length of a standard normal vector: a cell's deviation is so that of a coordinate, whatever the likelihood.
_MEAN_LENGTH = {3: 1.5958, 2: 1.2533}


@dataclass(frozen=True, slots=True)
class CellsConfig(ObjectiveConfig):
    """Settings of the dense systems' objective.

    Attributes:
        cells: of each picture that a step looks at, drawn at random; 0: all.
        solver_weight: of the true pose's likelihood under what the solver makes of these cells together, see
            :func:`solver_loss`, added to that of each cell by itself.
    """

    cells: int = 0
    solver_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.cells < 0 or self.solver_weight < 0:
            raise ValueError(f"cells and solver_weight must not be negative, got {self}")


class DenseObjective(Objective):
    """Heteroscedastic likelihood of every cell's coordinates, robust: a Laplace distribution of the residual's length.

    A cell with a measured point has residual ``e = R^T (X - t) - p`` (3 dimensions, k = 3), one with a ray alone the
    part of it that is across the ray (k = 2). The negative log-likelihood is, up to a constant,
    ``k |e| / (m_k sigma) + k log sigma``, with m_k the mean length of a standard normal vector. What a ray alone tells
    is a direction, whose density is that of the point across the ray times the squared depth: ``- 2 log depth`` more.
    Without it, points at the camera's own place would be the likeliest. Mean over the cells, sum over the modalities.

    Where the map has regions, each frame is taken to look at one, drawn by how much it belongs to each, and every
    modality's classifier pays the cross-entropy to these shares. Where the configuration gives it a weight,
    :func:`training.objectives.dense.solver_loss` of a frame's cells together is added.

    Args:
        config: says how many cells of each picture a step looks at.
        codec: of the map.
    """

    config_type = CellsConfig

    def __init__(self, config: CellsConfig, codec: PoseCodec) -> None:
        super().__init__()
        self._cells, self._solver_weight, self._codec = config.cells, config.solver_weight, codec

    @classmethod
    def build(cls, config: CellsConfig, codec: PoseCodec) -> DenseObjective:
        return cls(config, codec)

    def terms(self, model: DenseModel, batch: ModelInput | PrecomputedFeatures, target: Tensor) -> Terms:
        rotation, translation = true_poses(target, self._codec)
        looks = dict(batch.by_modality if isinstance(batch, PrecomputedFeatures) else model.look(batch))
        losses, watched, predicted = [], {}, {}
        shares = None if model.regions is None else model.regions.shares(translation)
        drawn = None if shares is None else torch.multinomial(shares, 1).squeeze(1)
        for name, look in looks.items():
            if model.regions is not None and shares is not None:
                opinion = model.regions.log_probabilities(name, look.context)
                losses.append(-(shares[look.rows] * opinion).sum(dim=1).mean())
                watched[f"region_{name}"] = (opinion.argmax(dim=1) == shares[look.rows].argmax(dim=1)).float().mean()
            count = look.cells.valid.shape[1]
            if 0 < self._cells < count:
                look = looks[name] = look.some(torch.randperm(count, device=target.device)[: self._cells])
            points, log_std = predicted[name] = model.predict(name, look, None if drawn is None else drawn[look.rows])
            length, depth = residual_lengths(points, look.cells, rotation[look.rows], translation[look.rows])
            dimensions = torch.where(look.cells.ranged, 3, 2)
            unit = torch.where(look.cells.ranged, _MEAN_LENGTH[3], _MEAN_LENGTH[2])
            loss = dimensions * (length / unit * torch.exp(-log_std) + log_std)
            loss = loss - torch.where(look.cells.ranged, 0.0, 2 * torch.log(depth))
            weight = look.cells.valid / look.cells.valid.sum().clamp(min=1)
            losses.append((loss * weight).sum())
            watched[f"error_{name}_m"] = (length.detach() * weight).sum()
        loss = torch.stack(losses).sum()
        if self._solver_weight:
            c, _ = correspondences(looks, predicted, len(target))
            together, of_solver = solver_loss(c, rotation, translation, float(model.extent_m))
            loss, watched = loss + self._solver_weight * together, watched | of_solver
        return {"loss": loss, **watched}


def residual_lengths(points_m: Tensor, cells: Cells, rotation: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
    """How far predicted points are from what the cells measured, and from the sensor, seen from the true pose.

    Args:
        points_m: ``(B, N, 3)`` predicted, in the map.
        rotation: ``(B, 3, 3)`` map from body.
        translation: ``(B, 3)``.

    Returns:
        Lengths ``(B, N)`` in metres, and depths along the rays ``(B, N)``. A ray begins a decimetre before the sensor.
    """
    with torch.autocast(points_m.device.type, enabled=False):  # half precision would round to decimetres
        residual = (points_m - translation.unsqueeze(1)) @ rotation - cells.points_m
    along = (residual * cells.rays).sum(dim=-1, keepdim=True).clamp(min=_LEAST_DEPTH_M)
    across = residual - along * cells.rays
    chosen = torch.where(cells.ranged.unsqueeze(-1), residual, across)
    length = torch.sqrt(chosen.square().sum(dim=-1) + 1e-8)  # the root's slope at zero is infinite
    return length, along.squeeze(-1)


def true_poses(target: Tensor, codec: PoseCodec) -> tuple[Tensor, Tensor]:
    """Rotations ``(B, 3, 3)`` and translations ``(B, 3)``, metres from the map's origin, of pose vectors ``(B, 6)``."""
    reference = torch.tensor(codec.reference_wxyz, dtype=target.dtype, device=target.device).expand(len(target), -1)
    return rotation_matrix(quaternion_product(reference, quaternion_exp(target[:, 3:]))), target[:, :3] * codec.scale_m


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
