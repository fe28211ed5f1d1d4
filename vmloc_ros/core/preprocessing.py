# SPDX-License-Identifier: Apache-2.0
"""From frames to tensors: the configuration is stored in the checkpoint, for training, evaluation and robot alike.

Two steps, so that training can cache the first and augment between them:

1. :meth:`Preprocessor.prepare` per frame: resize, project; values keep their units (uint8, metres).
2. :meth:`Preprocessor.normalise` per batch, on the model's device: crop, clip, scale to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.core.cameras import resized, undistorted
from vmloc_ros.core.errors import DataError, ModelError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, MODALITIES, Frame, PinholeCamera, PointCloud
from vmloc_ros.core.projection import CylindricalConfig, cylindrical_projection, pinhole_projection

PREPARED_VERSION = 4  # increment when :meth:`Preprocessor.prepare` changes its values: caches are then rebuilt


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """Constants of preprocessing.

    Attributes:
        modalities: inputs of the model: some of ``image``, ``depth``, ``lidar``.
        shortest_side: image and depth are scaled to this shortest side, keeping the aspect ratio (VMLoc: 256).
        crop: ``(height, width)`` cut from image and depth after scaling, the same window for both: random in
            training, central otherwise; None keeps everything.
        depth_range_m: depth (and pinhole-projected lidar) is clipped to it and scaled to [-1, 1].
        lidar_projection: ``cylindrical`` (MV3D) or ``pinhole`` (into the camera).
        cylinder: the cylindrical range image.
        lidar_range_m: ranges are clipped to it and scaled to [-1, 1].
        lidar_height_m: likewise for heights in the lidar's frame.
        lidar_intensity: likewise for intensities in the sensor's unit.
        undistort: make pictures and depth those of a pinhole camera: undo a lens's distortion (see
            :func:`vmloc_ros.core.cameras.undistorted`), and leave out what comes from an unknown camera. None: for
            systems that need geometry, and for those that see the lidar projected into the camera.
    """

    modalities: tuple[str, ...] = (IMAGE, LIDAR)
    shortest_side: int = 256
    crop: tuple[int, int] | None = None
    depth_range_m: tuple[float, float] = (0.0, 10.0)
    lidar_projection: Literal["cylindrical", "pinhole"] = "cylindrical"
    cylinder: CylindricalConfig = CylindricalConfig(
        rows=32, columns=512, elevation_min_deg=-25.0, elevation_max_deg=15.0
    )
    lidar_range_m: tuple[float, float] = (0.0, 80.0)
    lidar_height_m: tuple[float, float] = (-3.0, 12.0)
    lidar_intensity: tuple[float, float] = (0.0, 255.0)
    undistort: bool | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.modalities if name not in MODALITIES]
        if not self.modalities or unknown or len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities must be distinct names of {', '.join(MODALITIES)}, got {self.modalities}")
        if self.shortest_side < 32:
            raise ValueError(f"shortest_side must be at least 32 pixels, got {self.shortest_side}")
        if self.crop is not None and not 32 <= min(self.crop) <= self.shortest_side:
            raise ValueError(f"crop must be at least 32 and fit shortest_side {self.shortest_side}, got {self.crop}")
        for name in ("depth_range_m", "lidar_range_m", "lidar_height_m", "lidar_intensity"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name} must increase, got {low} .. {high}")

    def for_system(self, needs_geometry: bool) -> PreprocessConfig:
        """With ``undistort`` decided: the same in training, evaluation and on the robot, also for old checkpoints.

        Args:
            needs_geometry: whether the system takes cameras to be pinhole cameras.
        """
        if self.undistort is not None:
            return self
        projects = LIDAR in self.modalities and self.lidar_projection == "pinhole"
        return replace(self, undistort=needs_geometry or projects)


class Preprocessor:
    """Turns frames into normalised tensors.

    Channels: image RGB; depth (depth, validity); lidar cylindrical (range, height, intensity, validity) or pinhole
    (depth, validity). Measurements are 0 where validity is 0. Prepared cylindrical images also have azimuth and time,
    for :mod:`vmloc_ros.core.models.dense.cells`; they are no input of the networks.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        self.config = config
        self._undistorts = config.for_system(needs_geometry=False).undistort

    @property
    def channels(self) -> dict[str, int]:
        """Channels per modality, in the order of ``config.modalities``."""
        lidar = 4 if self.config.lidar_projection == "cylindrical" else 2
        return {name: {IMAGE: 3, DEPTH: 2, LIDAR: lidar}[name] for name in self.config.modalities}

    def is_in_camera(self, name: str) -> bool:
        """Whether the modality's images are in the camera's view."""
        return name != LIDAR or self.config.lidar_projection == "pinhole"

    def prepare(self, frame: Frame) -> dict[str, Tensor]:
        """Undistorted, resized and projected tensors ``(C, H, W)`` of the modalities that the frame has.

        Image is uint8 0-255, everything else float32 in metres and the sensor's intensity unit.

        Raises:
            ModelError: the frame has none of the wanted modalities, or lacks the camera or extrinsics that
                pinhole projection needs.
        """
        given, frame = frame, self.usable(frame)
        frame = undistorted(frame) if self._undistorts else frame
        prepared: dict[str, Tensor] = {}
        for name in self.config.modalities:
            if name == IMAGE and frame.image is not None:
                prepared[name] = self._prepare_image(frame.image)
            elif name == DEPTH and frame.depth_m is not None:
                prepared[name] = self._prepare_depth(frame.depth_m)
            elif name == LIDAR and frame.cloud is not None:
                prepared[name] = self._prepare_cloud(frame.cloud, frame)
        if not prepared and frame is not given:
            raise ModelError(
                f"the camera of {' and '.join(given.modalities)} is not known, and the model needs it: there is no "
                "valid CameraInfo that fits the picture"
            )
        if not prepared:
            raise ModelError(
                f"the frame has {', '.join(frame.modalities) or 'nothing'}; the model needs at least one of "
                f"{', '.join(self.config.modalities)}"
            )
        return prepared

    def usable(self, frame: Frame) -> Frame:
        """The frame without pictures of an unknown camera, where they must be those of a pinhole camera."""
        if frame.camera is not None or not self._undistorts or (frame.image is None and frame.depth_m is None):
            return frame
        return replace(frame, image=None, depth_m=None)

    def normalise(
        self, batch: Mapping[str, Tensor], crop_offset: tuple[float, float] = (0.5, 0.5)
    ) -> dict[str, Tensor]:
        """Prepared ``(B, C, H, W)`` tensors to float32 network input in [-1, 1].

        Args:
            crop_offset: position of the crop, ``(vertical, horizontal)`` from 0 (top, left) to 1; 0.5 is central.
        """
        return {name: self._normalise(name, x) for name, x in self.crop(batch, crop_offset).items()}

    def crop(self, batch: Mapping[str, Tensor], offset: tuple[float, float] = (0.5, 0.5)) -> dict[str, Tensor]:
        """The window of :meth:`normalise`, values as prepared. Raises DataError: the crop does not fit."""
        windows = {name: self._window(name, x, offset) for name, x in batch.items()}
        return {name: x[..., windows[name][0], windows[name][1]] for name, x in batch.items()}

    def intrinsics(self, frame: Frame) -> Tensor:
        """``(3, 3)`` camera matrix of the prepared image; NaN where the camera is unknown."""
        if frame.camera is None:
            return torch.full((3, 3), torch.nan)
        camera = frame.camera.undistorted if self._undistorts else frame.camera
        return _scaled_intrinsics(camera, *self._scaled_size(camera.height, camera.width))

    def crop_intrinsics(
        self, intrinsics: Tensor, batch: Mapping[str, Tensor], offset: tuple[float, float] = (0.5, 0.5)
    ) -> Tensor:
        """Camera matrices ``(B, 3, 3)`` of the window that :meth:`crop` cuts from the prepared batch."""
        name = next(name for name in MODALITIES if name in batch)
        rows, columns = self._window(name, batch[name], offset)
        cropped = intrinsics.clone()
        cropped[:, 0, 2] -= columns.start
        cropped[:, 1, 2] -= rows.start
        return cropped

    def __call__(self, frames: Sequence[Frame], device: torch.device | str = "cpu") -> list[dict[str, Tensor]]:
        """Network input of single frames, each with batch size 1."""
        prepared = [{name: x.unsqueeze(0).to(device) for name, x in self.prepare(frame).items()} for frame in frames]
        return [self.normalise(batch) for batch in prepared]

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self.config.shortest_side / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _prepare_image(self, image: NDArray[np.uint8]) -> Tensor:
        height, width = self._scaled_size(*image.shape[:2])
        if (height, width) != image.shape[:2]:
            shrinks = height < image.shape[0]
            # INTER_AREA averages, which avoids aliasing of fine texture.
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def _prepare_depth(self, depth_m: NDArray[np.float32]) -> Tensor:
        height, width = self._scaled_size(*depth_m.shape)
        # Nearest: averaging across an edge, or with "no measurement", would invent surfaces.
        scaled = cv2.resize(depth_m, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return torch.from_numpy(np.stack([scaled, (scaled > 0).astype(np.float32)]))

    def _prepare_cloud(self, cloud: PointCloud, frame: Frame) -> Tensor:
        xyz = torch.from_numpy(np.ascontiguousarray(cloud.xyz_m, np.float32)).unsqueeze(0)
        if self.config.lidar_projection == "cylindrical":
            intensity, time_s = (
                None if x is None else torch.from_numpy(np.ascontiguousarray(x, np.float32))[None]
                for x in (cloud.intensity, cloud.time_s)
            )
            return cylindrical_projection(xyz, intensity, self.config.cylinder, time_s)[0]
        if frame.camera is None or frame.camera_from_lidar is None:
            raise ModelError("pinhole projection of the cloud needs camera intrinsics and the lidar's extrinsics")
        height, width = self._scaled_size(frame.camera.height, frame.camera.width)
        camera_from_lidar = torch.from_numpy(frame.camera_from_lidar.matrix).float().unsqueeze(0)
        intrinsics = _scaled_intrinsics(frame.camera, height, width).unsqueeze(0)
        return pinhole_projection(xyz, camera_from_lidar, intrinsics, height, width)[0]

    def _window(self, name: str, x: Tensor, offset: tuple[float, float]) -> tuple[slice, slice]:
        """Rows and columns that the crop keeps; all of a cylindrical image's."""
        height, width = x.shape[-2:]
        if self.config.crop is None or not self.is_in_camera(name):
            return slice(0, height), slice(0, width)
        rows, columns = self.config.crop
        if height < rows or width < columns:
            raise DataError(f"crop {rows}x{columns} does not fit the scaled {name} of {height}x{width}; reduce `crop`")
        top, left = round(offset[0] * (height - rows)), round(offset[1] * (width - columns))
        return slice(top, top + rows), slice(left, left + columns)

    def _normalise(self, name: str, x: Tensor) -> Tensor:
        config = self.config
        if name == IMAGE:
            return x.float().div(127.5).sub_(1.0)  # not div_: float input would be changed in place
        if name == LIDAR and config.lidar_projection == "cylindrical":
            ranges = [config.lidar_range_m, config.lidar_height_m, config.lidar_intensity]
        else:
            ranges = [config.depth_range_m]
        low, high = x.new_tensor(ranges).T[..., None, None]
        validity = x[:, -1:].float()
        measured = ((x[:, : len(ranges)].float() - low) * (2 / (high - low)) - 1).clamp_(-1, 1)
        return torch.cat([measured * validity, validity], dim=1)


def _scaled_intrinsics(camera: PinholeCamera, height: int, width: int) -> Tensor:
    """``(3, 3)`` intrinsics after scaling."""
    scaled = resized(camera, height, width)
    return torch.tensor([[scaled.fx, 0.0, scaled.cx], [0.0, scaled.fy, scaled.cy], [0.0, 0.0, 1.0]])
