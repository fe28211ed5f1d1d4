# SPDX-License-Identifier: Apache-2.0
"""Extent of the map and of its regions, from the points that training frames observe; set before a dense training."""

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

Array = NDArray[np.float64]
_BATCH = 16
_FRAMES = 256  # that the map's extent is computed from, and
_FRAMES_PER_REGION = 32  # in the mean, that of each region
_UNMEASURED_EXTENT = 3.0  # in units of the positions' spread, where no frame has measured a point


@torch.no_grad()
def set_map_extent(
    model: DenseModel,
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    codec: PoseCodec,
    device: torch.device,
) -> None:
    """Set centre and extent of the model's map and regions from points that some of the frames measured.

    Args:
        rows: of the data, the training frames.
        codec: of the map.

    Raises:
        DataError: there are fewer distinct positions than regions.
    """
    regions, count = model.regions, 1 if model.regions is None else len(model.regions)
    poses = [data.poses[i] for i in rows.tolist()]
    positions = np.stack([pose.position_m for pose in poses]) - codec.origin_m
    places = torch.from_numpy(cluster_positions(positions, count)).to(device)
    chosen = torch.linspace(0, len(rows) - 1, min(max(_FRAMES, _FRAMES_PER_REGION * count), len(rows))).long()
    sums = _point_sums(model, data, rows[chosen], places, preprocessor, codec, device)
    centre, extent = _moments(sums.sum(dim=0, keepdim=True))
    unmeasured = not bool(extent.isfinite())
    model.set_extent(
        torch.zeros(3) if unmeasured else centre[0],
        torch.tensor(_UNMEASURED_EXTENT * codec.scale_m) if unmeasured else extent[0].clamp(min=codec.scale_m),
    )
    if regions is not None:
        centres, extents = _moments(sums)
        spread = _UNMEASURED_EXTENT * torch.from_numpy(_spreads(positions, places.cpu().numpy())).to(device)
        regions.places_m.copy_(places)
        regions.centres_m.copy_(torch.where(extents.isfinite().unsqueeze(1), centres, places))
        regions.extents_m.copy_(torch.where(extents.isfinite(), extents, spread).clamp(min=codec.scale_m / count))


def _point_sums(
    model: DenseModel,
    data: PreparedDataset,
    rows: Tensor,
    places: Tensor,
    preprocessor: Preprocessor,
    codec: PoseCodec,
    device: torch.device,
) -> Tensor:
    """Sums ``(K, 5)`` over the points observed from frames near each place: count, x, y, z and squared length."""
    sums = torch.zeros(len(places), 5, dtype=torch.float64, device=device)
    for chunk in rows.split(_BATCH):
        batch = next(batches(data, chunk, preprocessor, device, geometry=True))
        target = torch.from_numpy(codec.encode([data.poses[i] for i in chunk.tolist()])).to(device)
        rotation, translation = true_poses(target, codec)
        owner = torch.cdist(translation, places.to(translation)).argmin(dim=1)
        for here, cells in model.geometry(batch):
            points = (cells.points_m @ rotation[here].mT + translation[here, None])[cells.ranged].double()
            row = torch.cat([torch.ones_like(points[:, :1]), points, points.square().sum(dim=1, keepdim=True)], dim=1)
            sums.index_add_(0, owner[here].unsqueeze(1).expand(cells.ranged.shape)[cells.ranged], row)
    return sums


def cluster_positions(positions_m: Array, count: int) -> Array:
    """Centres ``(count, 3)`` of clusters of positions ``(N, 3)``: k-means, started at positions far apart.

    Raises:
        DataError: there are fewer distinct positions than clusters.
    """
    chosen = [int(np.linalg.norm(positions_m - positions_m.mean(axis=0), axis=1).argmax())]
    distance = np.full(len(positions_m), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, np.linalg.norm(positions_m - positions_m[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
        if distance[chosen[-1]] == 0:
            raise DataError(
                f"training frames are at {len(chosen) - 1} places, too few for model.regions: {count}; reduce it"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster keeps its centre
        return np.asarray(kmeans2(positions_m, positions_m[chosen], iter=30, minit="matrix")[0])


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Means ``(K, 3)`` and root mean square deviations ``(K,)`` per coordinate; not finite where there is no point."""
    means = sums[:, 1:] / sums[:, :1]
    variance = (means[:, 3] - means[:, :3].square().sum(dim=1)) / 3
    return means[:, :3], torch.where(sums[:, 0] > 1, variance.clamp(min=0).sqrt(), torch.nan)


def _spreads(positions: Array, places: Array) -> Array:
    """Root mean square distance ``(K,)`` of each place from the positions ``(N, 3)`` that are nearest to it."""
    distance, owner = cKDTree(places).query(positions)
    counts = np.bincount(owner, minlength=len(places)).clip(min=1)
    return np.sqrt(np.bincount(owner, distance**2, len(places)) / counts)
