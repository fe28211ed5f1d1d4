# SPDX-License-Identifier: Apache-2.0
"""Where training frames look: the extent of the map and of its regions, which a dense system knows before training."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree
from torch import Tensor

from training.data.dataset import PreparedDataset
from training.data.model_input import batches
from training.objectives.dense import true_poses
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.models import DenseModel
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor

_BATCH = 16
_LOOKED_AT = 256  # frames that tell the map's extent
_LOOKED_AT_REGION = 32  # and, in the mean, that of each region
_BEYOND = 3.0  # where nothing was measured, frames are taken to look so many times as far as their places spread


@torch.no_grad()
def learn_extent(
    model: DenseModel,
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    codec: PoseCodec,
    device: torch.device,
) -> None:
    """Tell the model where in the map training frames look: from what some of them measured and their true poses.

    Raises:
        DataError: there are fewer places than regions.
    """
    regions, count = model.regions, 1 if model.regions is None else len(model.regions)
    poses = [data.poses[i] for i in rows.tolist()]
    positions = np.stack([pose.position_m for pose in poses]) - codec.origin_m
    places = torch.from_numpy(spread_places(positions, count)).to(device)
    chosen = torch.linspace(0, len(rows) - 1, min(max(_LOOKED_AT, _LOOKED_AT_REGION * count), len(rows))).long()
    sums = torch.zeros(count, 5, dtype=torch.float64, device=device)  # points, x, y, z, and their squared lengths
    for chunk in chosen.split(_BATCH):
        batch = next(batches(data, rows[chunk], preprocessor, device, geometry=True))
        target = torch.from_numpy(codec.encode([poses[i] for i in chunk.tolist()])).to(device)
        rotation, translation = true_poses(target, codec)
        owner = torch.cdist(translation, places.to(translation)).argmin(dim=1)
        for here, cells in model.geometry(batch):
            points = (cells.points_m @ rotation[here].mT + translation[here, None])[cells.ranged].double()
            row = torch.cat([torch.ones_like(points[:, :1]), points, points.square().sum(dim=1, keepdim=True)], dim=1)
            sums.index_add_(0, owner[here].unsqueeze(1).expand(cells.ranged.shape)[cells.ranged], row)
    centre, extent = _moments(sums.sum(dim=0, keepdim=True))
    unseen = not bool(extent.isfinite())
    model.set_extent(
        torch.zeros(3) if unseen else centre[0],
        torch.tensor(_BEYOND * codec.scale_m) if unseen else extent[0].clamp(min=codec.scale_m),
    )
    if regions is not None:
        centres, extents = _moments(sums)
        spread = _BEYOND * torch.from_numpy(_spreads(positions, places.cpu().numpy())).to(device)
        regions.places_m.copy_(places)
        regions.centres_m.copy_(torch.where(extents.isfinite().unsqueeze(1), centres, places))
        regions.extents_m.copy_(torch.where(extents.isfinite(), extents, spread).clamp(min=codec.scale_m / count))


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Means ``(K, 3)`` and root mean square deviations ``(K,)`` of a coordinate; not finite where there is no point."""
    means = sums[:, 1:] / sums[:, :1]
    variance = (means[:, 3] - means[:, :3].square().sum(dim=1)) / 3
    return means[:, :3], torch.where(sums[:, 0] > 1, variance.clamp(min=0).sqrt(), torch.nan)


def _spreads(positions: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square distance ``(K,)`` of the positions that belong to each place from it."""
    distance, owner = cKDTree(places).query(positions)
    counts = np.bincount(owner, minlength=len(places)).clip(min=1)
    return np.sqrt(np.bincount(owner, distance**2, len(places)) / counts)


def spread_places(positions_m: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Middles ``(count, 3)`` of that many groups of neighbouring positions ``(N, 3)``: k-means from far-apart starts.

    Raises:
        DataError: there are fewer places than groups.
    """
    chosen = [int(np.linalg.norm(positions_m - positions_m.mean(axis=0), axis=1).argmax())]
    distance = np.full(len(positions_m), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, np.linalg.norm(positions_m - positions_m[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
        if distance[chosen[-1]] == 0:
            raise DataError(f"training frames are at {len(chosen) - 1} places, too few for model.regions: {count}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a group that loses its last position keeps its place
        return np.asarray(kmeans2(positions_m, positions_m[chosen], iter=30, minit="matrix")[0])
