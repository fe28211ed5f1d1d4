# SPDX-License-Identifier: Apache-2.0
"""Training of dense map coordinates: their likelihood, and features of frozen trunks computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from training.config import ObjectiveConfig
from training.data.frozen_features import Looks
from training.objective import Objective, Terms
from training.solver_loss import solver_loss
from vmloc_ros.core.models import DenseModel, ModelInput
from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.models.dense.model import correspondences
from vmloc_ros.core.models.rotation import quaternion_exp, quaternion_product, rotation_matrix
from vmloc_ros.core.pose_codec import PoseCodec

_BATCH = 16
_LEAST_DEPTH_M = 0.1
# Mean length of a standard normal vector: a cell's deviation is so that of a coordinate, whatever the likelihood.
_MEAN_LENGTH = {3: 1.5958, 2: 1.2533}


class DenseObjective(Objective):
    """Heteroscedastic likelihood of every cell's coordinates, robust: a Laplace distribution of the residual's length.

    A cell with a measured point has residual ``e = R^T (X - t) - p`` (3 dimensions, k = 3), one with a ray alone the
    part of it that is across the ray (k = 2). The negative log-likelihood is, up to a constant,
    ``k |e| / (m_k sigma) + k log sigma``, with m_k the mean length of a standard normal vector. What a ray alone tells
    is a direction, whose density is that of the point across the ray times the squared depth: ``- 2 log depth`` more.
    Without it, points at the camera's own place would be the likeliest. Mean over the cells, sum over the modalities.

    Where the map has regions, each frame is taken to look at one, drawn by how much it belongs to each, and every
    modality's classifier pays the cross-entropy to these shares. Where the configuration gives it a weight,
    :func:`training.solver_loss.solver_loss` of a frame's cells together is added.

    Args:
        config: says how many cells of each picture a step looks at.
        codec: of the map.
    """

    def __init__(self, config: ObjectiveConfig, codec: PoseCodec) -> None:
        super().__init__()
        self._cells, self._solver_weight, self._codec = config.cells, config.solver_weight, codec

    def terms(self, model: DenseModel, batch: ModelInput | Looks, target: Tensor) -> Terms:
        rotation, translation = true_poses(target, self._codec)
        looks = dict(batch.looks if isinstance(batch, Looks) else model.look(batch))
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
