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
from training.data.model_input import batches, prepared_input
from training.objectives.dense import true_poses
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.models import DenseModel
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import progress_bar

Array = NDArray[np.float64]
_FRAMES = 2000  # at most, evenly spread, for the first region, and
_FRAMES_REGION = 300  # for each further one
_SEEN = 3  # points that a voxel needs: fewer are noise, or something that moved
_NEIGHBOURS = 12  # voxels that a plane is fitted to
_PENDING = 2_000_000  # points that wait to be sorted
_KEY_SIDE = 1 << 21  # voxels along an axis: three of their numbers make one of 63 bits

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
    with progress_bar(len(chosen), "map of points", "frames") as bar:
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
