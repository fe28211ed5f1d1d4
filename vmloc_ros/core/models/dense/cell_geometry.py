# SPDX-License-Identifier: Apache-2.0
"""Geometry of the cells of all modalities, in the body frame at the frame's stamp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models.base import PoseModel
from vmloc_ros.core.models.dense.cells import Cells, camera_cells, cylinder_cells, seen_by_camera
from vmloc_ros.core.models.dense.config import DenseConfig
from vmloc_ros.core.models.input_output import ModelInput

_CYLINDER_CHANNELS = 6  # of a prepared cylindrical image
_IN_CAMERA_CHANNELS = 2  # of a lidar's pinhole projection into the camera


class CellGeometry(PoseModel):
    """Base of systems that know where their sensors are mounted and how their body usually moves.

    Args:
        config: the cells' strides.
        channels: input channels per modality, in the order of the modalities.
    """

    needs_geometry = True
    mounts: Tensor  # (M, 4, 4) float64, body from sensor
    usual_twist: Tensor  # (6,) of the body in its own axes, m/s and rad/s
    twist_std: Tensor  # (6,) standard deviation of the body's twist

    def __init__(self, config: DenseConfig, channels: Mapping[str, int]) -> None:
        super().__init__(tuple(channels))
        self._lidar_in_camera = channels.get(LIDAR) == _IN_CAMERA_CHANNELS
        self._strides = {name: config.lidar_stride if name == LIDAR else config.cell_stride for name in channels}
        self.register_buffer("mounts", torch.full((len(channels), 4, 4), torch.nan, dtype=torch.float64))
        self.register_buffer("usual_twist", torch.zeros(6))
        self.register_buffer("twist_std", torch.ones(6))

    def set_mounts(self, mounts: Mapping[str, Pose]) -> None:
        sensors = {name: IMAGE if name == LIDAR and self._lidar_in_camera else name for name in self.modalities}
        if missing := [name for name, sensor in sensors.items() if sensor not in mounts]:
            words = " ".join(f"--set source.mounts.{sensors[name]}=[x,y,z,roll,pitch,yaw]" for name in missing)
            raise ModelError(
                f"the mounting of the sensor of {', '.join(missing)} is not known, and dense systems need it: "
                "/tf_static must lead from source.body_frame to the frame of the messages. Where the poses are those "
                "of another frame, such as the sensor's own, type --set source.body_frame=FRAME; where the recording "
                f"has no transform to the sensor, type {words} (metres and radians)"
            )
        self.mounts.copy_(torch.stack([torch.from_numpy(mounts[sensor].matrix) for sensor in sensors.values()]))

    def set_usual_twist(self, twist: Tensor, deviation: Tensor) -> None:
        self.usual_twist.copy_(twist)
        self.twist_std.copy_(deviation)

    def geometry(self, batch: ModelInput) -> Iterator[tuple[Tensor, Cells]]:
        """For each modality, the rows ``(R,)`` of the batch that have it, and the geometry of their cells."""
        for name in self.modalities:
            rows = torch.nonzero(batch.present[name]).flatten()
            if len(rows):
                stride = self._strides[name]
                height, width = (-(-side // stride) for side in batch.tensors[name].shape[-2:])
                yield rows, self._cells(name, batch, rows, (height, width), stride)

    def measured_points(self, batch: ModelInput, step: int) -> Iterator[tuple[Tensor, Cells]]:
        """For each modality that measures range, rows ``(R,)`` of the batch, and the points of every ``step``-th pixel.

        Of cylindrical images all cells are returned.
        """
        for name in self.modalities:
            rows = torch.nonzero(batch.present[name]).flatten()
            if name != IMAGE and len(rows) and batch.measured is not None:
                height, width = (-(-side // step) for side in batch.measured[name].shape[-2:])
                own = 1 if _is_cylinder(batch.measured[name]) else step
                cells = self._cells(name, batch, rows, (height, width), own)
                yield rows, cells

    def _twists(self, batch: ModelInput) -> Tensor:
        """``(B, 6)`` of the batch; the usual twist where it is unknown."""
        usual = self.usual_twist.expand(len(batch), -1)
        return usual if batch.twists is None else torch.where(torch.isfinite(batch.twists), batch.twists, usual)

    def _cells(self, name: str, batch: ModelInput, rows: Tensor, shape: tuple[int, int], stride: int) -> Cells:
        """Cells of these rows, compensated for the body's motion since the stamp."""
        measured, intrinsics = batch.measured, batch.intrinsics
        if measured is None or intrinsics is None:
            raise ModelError("dense systems need ModelInput.measured and ModelInput.intrinsics")
        if name == LIDAR and _is_cylinder(measured[name]):
            picture = measured[name][rows, :, : stride * shape[0], : stride * shape[1]]
            return cylinder_cells(picture, self._mount(name), stride).moved(self._twists(batch)[rows])
        # Cells of an image also take the depth camera's measurements, or those of a lidar projected into the camera.
        source = name if name != IMAGE else DEPTH if DEPTH in self.modalities else LIDAR
        depth = None
        if (
            source in self.modalities
            and not _is_cylinder(measured[source])
            and bool((here := batch.present[source][rows]).any())
        ):
            depth = measured[source][rows] * here.view(-1, 1, 1, 1)
            (height, width), (rows_px, columns_px) = depth.shape[-2:], measured[name].shape[-2:]
            if (height, width) != (rows_px, columns_px):
                raise ModelError(
                    f"{source} is {height}x{width} after scaling, but {name} {rows_px}x{columns_px}; dense systems "
                    "need images in the camera's view to have the same aspect ratio"
                )
            depth = depth[..., : stride * shape[0], : stride * shape[1]]
        cells = camera_cells(intrinsics[rows], self._mount(name), shape, stride, depth)
        if batch.shown is not None:
            shown = batch.shown[rows, ::stride, ::stride][:, : shape[0], : shape[1]].flatten(1)
            cells = replace(cells, valid=cells.valid & shown, ranged=cells.ranged & shown)
        if name == IMAGE and LIDAR in self.modalities and _is_cylinder(measured[LIDAR]):
            # The scan is moved to the stamp first: the camera took its image there.
            scan = cylinder_cells(measured[LIDAR][rows], self._mount(LIDAR), 1).moved(self._twists(batch)[rows])
            scan = replace(scan, valid=scan.valid & batch.present[LIDAR][rows].unsqueeze(1))
            return _ranged_by(scan, cells, intrinsics[rows], self._mount(IMAGE), shape, stride)
        return cells

    def _mount(self, name: str) -> Tensor:
        return self.mounts[self.modalities.index(name)]


def _is_cylinder(measured: Tensor) -> bool:
    """Whether a modality's tensor holds cylindrical images; not if it is absent or in the camera's view."""
    return measured.dim() == 4 and measured.shape[1] == _CYLINDER_CHANNELS


def _ranged_by(
    scan: Cells, cells: Cells, intrinsics: Tensor, mount: Tensor, shape: tuple[int, int], stride: int
) -> Cells:
    """Give an image's cells without a measurement the points of a lidar's scan that project to them."""
    index, found = seen_by_camera(scan, intrinsics, mount, shape, stride, stride / 4)
    found = found & ~cells.ranged & cells.valid
    points = scan.points_m.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
    return replace(
        cells,
        points_m=torch.where(found.unsqueeze(-1), points, cells.points_m),
        ranged=cells.ranged | found,
        times_s=torch.where(found, scan.times_s.gather(1, index), cells.times_s),
    )
