# SPDX-License-Identifier: Apache-2.0
"""Objective of the dense systems: likelihood of the cells' map coordinates and of the pose solved from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.frozen_features import PrecomputedFeatures
from training.objectives.base import Objective, ObjectiveConfig, Terms
from vmloc_ros.core.models import DenseModel, ModelInput
from vmloc_ros.core.models.dense.cell_features import correspondences
from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.models.dense.correspondences import Correspondences
from vmloc_ros.core.models.dense.solver import refine
from vmloc_ros.core.models.rotation import quaternion_exp, quaternion_product, rotation_matrix
from vmloc_ros.core.pose_codec import PoseCodec

_FREEDOM = 4.0  # degrees of freedom of the t distribution: its influence function decreases for large errors
_DIMENSIONS = 6

_LEAST_DEPTH_M = 0.1
# m_k, mean length of a standard normal vector in k dimensions: makes sigma the standard deviation of a coordinate.
_MEAN_LENGTH = {3: 1.5958, 2: 1.2533}


@dataclass(frozen=True, slots=True)
class CellsConfig(ObjectiveConfig):
    """Settings of the dense systems' objective.

    Attributes:
        cells: cells of each image that a step uses, drawn at random; 0: all.
        solver_weight: factor on :func:`solver_loss`, which is added to the loss of the single cells.
    """

    cells: int = 0
    solver_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.cells < 0 or self.solver_weight < 0:
            raise ValueError(f"cells and solver_weight must not be negative, got {self}")


class DenseObjective(Objective):
    """Robust heteroscedastic likelihood of every cell's coordinates: a Laplace distribution of the residual's length.

    A cell with a measured point p has the residual ``e = R^T (X - t) - p`` (k = 3 dimensions); of a cell with only a
    ray, the component across the ray counts (k = 2). The negative log-likelihood is, up to a constant,
    ``k |e| / (m_k sigma) + k log sigma``, with m_k the mean length of a standard normal vector in k dimensions. A ray
    alone measures a direction; its density is that of the point across the ray times the squared depth, which adds
    ``-2 log depth``. Without this term, points at the camera's own position would be the likeliest. The loss is the
    mean over the cells, summed over the modalities.

    Where the map has regions, each frame's region is drawn by its soft assignment, and the cross-entropy of every
    modality's classifier to this assignment is added. With ``solver_weight``, :func:`solver_loss` is added, too.

    Args:
        codec: of the map.
    """

    config_type = CellsConfig

    def __init__(self, config: CellsConfig, codec: PoseCodec) -> None:
        super().__init__()
        self._cells, self._solver_weight, self._codec = config.cells, config.solver_weight, codec

    @classmethod
    def build(cls, config: CellsConfig, codec: PoseCodec, dropout: float) -> DenseObjective:
        return cls(config, codec)

    def terms(self, model: DenseModel, batch: ModelInput | PrecomputedFeatures, target: Tensor) -> Terms:
        rotation, translation = true_poses(target, self._codec)
        precomputed = isinstance(batch, PrecomputedFeatures)
        by_modality = dict(batch.by_modality if precomputed else model.cell_features(batch))
        losses, watched, predicted = [], {}, {}
        shares = None if model.regions is None else model.regions.shares(translation)
        drawn = None if shares is None else torch.multinomial(shares, 1).squeeze(1)
        for name, features in by_modality.items():
            if model.regions is not None and shares is not None:
                log_probabilities, assigned = (
                    model.regions.log_probabilities(name, features.context),
                    shares[features.rows],
                )
                losses.append(-(assigned * log_probabilities).sum(dim=1).mean())
                watched[f"region_{name}"] = (log_probabilities.argmax(dim=1) == assigned.argmax(dim=1)).float().mean()
            count = features.cells.valid.shape[1]
            if 0 < self._cells < count:
                indices = torch.randperm(count, device=target.device)[: self._cells]
                features = by_modality[name] = features.select_cells(indices)
            rows = features.rows
            prediction = predicted[name] = model.predict(name, features, None if drawn is None else drawn[rows])
            loss, watched[f"error_{name}_m"] = cell_loss(*prediction, features.cells, rotation[rows], translation[rows])
            losses.append(loss)
        loss = torch.stack(losses).sum()
        if self._solver_weight:
            c, _ = correspondences(by_modality, predicted, len(target))
            of_poses, watched_poses = solver_loss(c, rotation, translation, float(model.extent_m))
            loss, watched = loss + self._solver_weight * of_poses, watched | watched_poses
        return {"loss": loss, **watched}


def cell_loss(
    points_m: Tensor, log_std: Tensor, cells: Cells, rotation: Tensor, translation: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean negative log-likelihood of the valid cells, see :class:`DenseObjective`, and their mean error in metres.

    Args:
        points_m: ``(B, N, 3)`` predicted, from the map's origin.
        log_std: ``(B, N)`` predicted log standard deviations.
        rotation: ``(B, 3, 3)`` true, map from body.
        translation: ``(B, 3)`` true, from the map's origin.
    """
    length, depth = residual_lengths(points_m, cells, rotation, translation)
    dimensions = torch.where(cells.ranged, 3, 2)
    unit = torch.where(cells.ranged, _MEAN_LENGTH[3], _MEAN_LENGTH[2])
    loss = dimensions * (length / unit * torch.exp(-log_std) + log_std)
    loss = loss - torch.where(cells.ranged, 0.0, 2 * torch.log(depth))
    weight = cells.valid / cells.valid.sum().clamp(min=1)
    return (loss * weight).sum(), (length.detach() * weight).sum()


def residual_lengths(points_m: Tensor, cells: Cells, rotation: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of the cells' residuals at the true pose, and depths of the predicted points along the rays.

    Args:
        points_m: ``(B, N, 3)`` predicted, from the map's origin.
        rotation: ``(B, 3, 3)`` map from body.
        translation: ``(B, 3)`` from the map's origin.

    Returns:
        Lengths ``(B, N)`` in metres, of which a ray alone counts only the component across it, and depths ``(B, N)``
        of at least 0.1 m, so that a point behind the sensor is far from the ray.
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
    """Negative log-likelihood of true poses under a multivariate t distribution about the solver's solution.

    :func:`vmloc_ros.core.models.dense.solver.refine` starts at the true pose. With e the error of its solution
    (position, rotation), S its covariance and n = 4 degrees of freedom, the loss is, up to a constant,
    ``(n + 6) / 2 log(1 + e^T S^-1 e / n) + log det S / 2``. It trains all cells of a frame jointly: common errors are
    reduced, and deviations become such that the covariance of the product is consistent. Unsolved frames do not count.

    Args:
        c: correspondences of B frames.
        rotations: ``(B, 3, 3)`` true, map from body.
        translations: ``(B, 3)`` true, metres from the map's origin.
        spread_m: extent of the map.

    Returns:
        Mean loss over the solved frames, 0 if there is none; and detached means over these frames: the position error
        ``solver_m``, and ``solver_nees``, ``e^T S^-1 e / 6``, whose expectation is 1 for consistent covariances.
    """
    solution = refine(c, rotations, translations, spread_m=spread_m)
    turn = _rotation_vectors(rotations.double() @ solution.rotations.mT)
    error = torch.cat([translations.double() - solution.translations, turn], dim=1)
    # A rounded covariance may not be positive definite; the unit matrix in its place keeps gradients finite.
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
    """Vectors ``(B, 3)`` along the axes of rotations ``(B, 3, 3)``, of length ``2 sin(angle / 2)``."""
    skew = torch.stack([rotations[:, i, j] - rotations[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], dim=1)
    trace = torch.diagonal(rotations, dim1=1, dim2=2).sum(dim=1, keepdim=True)
    return skew / torch.sqrt((1 + trace).clamp(min=1e-3))
