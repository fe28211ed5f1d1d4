# SPDX-License-Identifier: Apache-2.0
"""The point map of a dense system, built from what its training frames measured."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from training.data.dataset import PreparedDataset
from training.data.model_input import prepared_input
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.models import DenseModel
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import progress_bar

Array = NDArray[np.float64]
_BATCH = 16
_FRAMES = 2000  # used at most, evenly spread, for the first region, and
_FRAMES_PER_REGION = 300  # for each further one
_CELL_STEP = 2  # every second cell, in rows and in columns
_LEAST_POINTS = 3  # of a voxel: fewer are noise, or something that moved
_NEIGHBOURS = 12  # voxels that a plane is fitted to
_PENDING = 2_000_000  # points that are buffered before they are sorted into voxels
_KEY_SIDE = 1 << 21  # voxels along an axis: three indices of 21 bits make a key of 63 bits


@torch.no_grad()
def build_point_map(
    model: DenseModel,
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    codec: PoseCodec,
    device: torch.device,
) -> None:
    """Fill the model's point map with the points that the rows measured, transformed by their true poses.

    Args:
        rows: of the data, the training frames.
        codec: of the map.

    Raises:
        DataError: too few voxels hold points, or the points extend farther than voxels of this size can be indexed.
    """
    assert model.map is not None, "model.map_voxel_m is set"
    voxel_m = model.map.voxel_m
    most = _FRAMES + _FRAMES_PER_REGION * (0 if model.regions is None else len(model.regions) - 1)
    chosen = rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]
    voxels = VoxelMeans(voxel_m)
    with progress_bar(len(chosen), "map of points", "frames") as bar:
        for chunk in chosen.split(_BATCH):
            tensors, present = data.batch(chunk, device)
            intrinsics, twists = data.intrinsics(chunk, device), data.twists[chunk].to(device)
            batch = prepared_input(tensors, present, preprocessor, intrinsics=intrinsics, twists=twists)
            for owners, cells in model.measured_points(batch, _CELL_STEP):
                for owner, points, ranged in zip(owners.tolist(), cells.points_m, cells.ranged, strict=True):
                    measured = points[ranged].double().cpu().numpy()
                    pose = data.poses[int(chunk[owner])]
                    voxels.add(pose.transform(measured) - np.asarray(codec.origin_m))
            bar.update(len(chunk))
    points = voxels.means(_LEAST_POINTS)
    if len(points) < _NEIGHBOURS:
        raise DataError(
            f"a map of points needs {_NEIGHBOURS} voxels of {voxel_m:g} m with {_LEAST_POINTS} or more points, but has "
            f"{len(points)}; change model.map_voxel_m, or set it to 0 for no map"
        )
    model.map.fill(torch.from_numpy(points), torch.from_numpy(plane_normals(points)))


class VoxelMeans:
    """Mean point of each voxel, of points that are added in parts.

    Args:
        side_m: side of the voxels.
    """

    def __init__(self, side_m: float) -> None:
        self._side_m = side_m
        self._keys, self._sums = np.empty(0, np.int64), np.empty((0, 4))
        self._pending: list[Array] = []

    def add(self, points: Array) -> None:
        """Add points ``(N, 3)``, metres from the map's origin."""
        self._pending.append(points)
        # The more voxels there are, the longer sorting takes, and the less often it is done.
        if sum(map(len, self._pending)) > max(_PENDING, 2 * len(self._keys)):
            self._reduce()

    def means(self, least_points: int) -> Array:
        """Mean points ``(N, 3)`` of the voxels with at least that many points.

        Raises:
            DataError: a point is farther from the map's origin than voxels of this size can be indexed.
        """
        self._reduce()
        kept = self._sums[self._sums[:, 3] >= least_points]
        return kept[:, :3] / kept[:, 3:]

    def _reduce(self) -> None:
        points = np.concatenate([np.empty((0, 3)), *self._pending])
        self._pending = []
        numbers = np.floor(points / self._side_m).astype(np.int64) + _KEY_SIDE // 2
        if np.any((numbers < 0) | (numbers >= _KEY_SIDE)):
            reach = _KEY_SIDE // 2 * self._side_m
            raise DataError(
                f"a point lies more than {reach:.0f} m from the map's origin; make model.map_voxel_m larger"
            )
        keys = np.concatenate([self._keys, (numbers[:, 0] * _KEY_SIDE + numbers[:, 1]) * _KEY_SIDE + numbers[:, 2]])
        sums = np.concatenate([self._sums, np.column_stack([points, np.ones(len(points))])])
        self._keys, owner = np.unique(keys, return_inverse=True)
        self._sums = np.stack([np.bincount(owner, column, len(self._keys)) for column in sums.T], axis=1)


def plane_normals(points: Array) -> Array:
    """Unit normals ``(N, 3)``, of arbitrary sign, of planes fitted to the neighbourhood of each of the points.

    Points on edges and foliage have scattered normals. They are kept, because they are a large part of a street.
    """
    count = min(_NEIGHBOURS, len(points))
    around = points[cKDTree(points).query(points, count)[1]]
    centred = around - around.mean(axis=1, keepdims=True)
    return np.linalg.eigh(np.einsum("nki,nkj->nij", centred, centred))[1][:, :, 0]
