# SPDX-License-Identifier: Apache-2.0
"""The map of points that training frames measured, for dense systems that register scans to it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from tqdm import tqdm

from training.data.dataset import PreparedDataset
from training.data.model_input import prepared_input
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.models import DenseModel
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor

Array = NDArray[np.float64]

_FRAMES = 2000  # at most, evenly spread, for the first region, and
_FRAMES_REGION = 300  # for each further one
_BATCH = 16
_SEEN = 3  # points that a voxel needs: fewer are noise, or something that moved
_NEIGHBOURS = 12  # voxels that a plane is fitted to
_PENDING = 2_000_000  # points that wait to be sorted
_KEY_SIDE = 1 << 21  # voxels along an axis: three of their numbers make one of 63 bits


@torch.no_grad()
def build_point_map(
    model: DenseModel,
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    codec: PoseCodec,
    device: torch.device,
) -> None:
    """Fill the model's map with what the rows measured, by their true poses.

    Raises:
        DataError: they measured nothing, or something out of all proportion to the voxels.
    """
    assert model.map is not None, "model.map_voxel_m is set"
    voxel_m, step = model.map.voxel_m, 2
    most = _FRAMES + _FRAMES_REGION * (0 if model.regions is None else len(model.regions) - 1)
    chosen = rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]
    voxels = _Voxels(voxel_m)
    with tqdm(total=len(chosen), desc="map of points", unit="frame", disable=None) as bar:
        for chunk in chosen.split(_BATCH):
            tensors, present = data.batch(chunk, device)
            intrinsics, twists = data.intrinsics(chunk, device), data.twists[chunk].to(device)
            batch = prepared_input(tensors, present, preprocessor, intrinsics=intrinsics, twists=twists)
            for owners, cells in model.measured_points(batch, step):
                for owner, points, ranged in zip(owners.tolist(), cells.points_m, cells.ranged, strict=True):
                    seen = points[ranged].double().cpu().numpy()
                    pose = data.poses[int(chunk[owner])]
                    voxels.add(pose.transform(seen) - np.asarray(codec.origin_m))
            bar.update(len(chunk))
    points = voxels.means(_SEEN)
    if len(points) < _NEIGHBOURS:
        raise DataError(
            f"only {len(points)} voxels of {voxel_m:g} m were seen; model.map_voxel_m: 0 does without a map"
        )
    model.map.fill(torch.from_numpy(points), torch.from_numpy(plane_normals(points)))


class _Voxels:
    """Running sums of points by voxel."""

    def __init__(self, side_m: float) -> None:
        self._side_m = side_m
        self._keys, self._sums = np.empty(0, np.int64), np.empty((0, 4))
        self._pending: list[Array] = []

    def add(self, points: Array) -> None:
        self._pending.append(points)
        if sum(map(len, self._pending)) > max(_PENDING, 2 * len(self._keys)):  # or a town would be sorted too often
            self._reduce()

    def means(self, fewest: int) -> Array:
        """Mean ``(N, 3)`` of the points in each voxel that has as many."""
        self._reduce()
        kept = self._sums[self._sums[:, 3] >= fewest]
        return kept[:, :3] / kept[:, 3:]

    def _reduce(self) -> None:
        points = np.concatenate([np.empty((0, 3)), *self._pending])
        self._pending = []
        numbers = np.floor(points / self._side_m).astype(np.int64) + _KEY_SIDE // 2
        if np.any((numbers < 0) | (numbers >= _KEY_SIDE)):
            reach = _KEY_SIDE // 2 * self._side_m
            raise DataError(
                f"a point lies more than {reach:.0f} m from the map's middle; make model.map_voxel_m larger"
            )
        keys = np.concatenate([self._keys, (numbers[:, 0] * _KEY_SIDE + numbers[:, 1]) * _KEY_SIDE + numbers[:, 2]])
        sums = np.concatenate([self._sums, np.column_stack([points, np.ones(len(points))])])
        self._keys, owner = np.unique(keys, return_inverse=True)
        self._sums = np.stack([np.bincount(owner, column, len(self._keys)) for column in sums.T], axis=1)


def plane_normals(points: Array) -> Array:
    """Unit normals ``(N, 3)`` of the planes through each of N points' neighbours; their sign means nothing.

    Edges and leaves are no planes but are kept: what they say is scattered, and without them half a street is missing.
    """
    count = min(_NEIGHBOURS, len(points))
    around = points[cKDTree(points).query(points, count)[1]]
    centred = around - around.mean(axis=1, keepdims=True)
    return np.linalg.eigh(np.einsum("nki,nkj->nij", centred, centred))[1][:, :, 0]
