# SPDX-License-Identifier: Apache-2.0
"""Extrinsics of RobotCar's sensors, and models of its cameras.

Two frames lie at the origin of the stereo camera: ``stereo``, the dataset's vehicle frame with x forward, y right,
z down, and ``vehicle``, the same turned to x forward, y left, z up (REP-103). ``base_link`` is the INS turned likewise.
All other sensor frames keep the dataset's axes.

An extrinsics file is one line ``x y z roll pitch yaw``. Those of lidars, INS and radar give the sensor's pose in the
stereo frame, those of the cameras the stereo frame's pose in the camera's: so the dataset's SDK uses them, and only
so is the left camera on the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.sources.files import parse_numbers, read_table
from vmloc_ros.core.compressed_images import unpack_image
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.frame import PinholeCamera
from vmloc_ros.core.geometry import Pose

BASE_FRAME, VEHICLE_FRAME = "base_link", "vehicle"
CAMERAS = ("stereo", "mono_left", "mono_right", "mono_rear")
LIDARS = ("lms_front", "lms_rear", "ldmrs", "velodyne_left", "velodyne_right")
SENSORS = (*CAMERAS, *LIDARS, "ins", "radar")
# From the dataset's axes to those of REP-103 and back: half a turn about x.
TURNED = Pose(np.zeros(3), np.array([0.0, 1.0, 0.0, 0.0]))
CENTRE_MODEL = "stereo_narrow_left"  # the centre lens is the left one of the narrow pair


@dataclass(frozen=True, slots=True, eq=False)
class CameraModel:
    """Intrinsics of the undistorted image in pixels, and the pose of the optical frame.

    Attributes:
        camera_from_optical: from the optical frame (x right, y down, z forward) to the camera's sensor frame.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    camera_from_optical: Pose


def find_folder(sequence: Path, name: str, given: str) -> Path:
    """The folder ``given``, else the one called ``name`` in the sequence's folder or the one above.

    Raises:
        DataError: there is none.
    """
    sequence = sequence.absolute()
    candidates = [Path(given)] if given else [sequence / name, sequence.parent / name]
    for folder in candidates:
        if folder.is_dir():
            return folder
    tried = " or ".join(map(str, candidates))
    raise DataError(
        f"{tried} is not a folder; the dataset's SDK has {name}, name it by source.robotcar.{name} (convert: --{name})"
    )


def stereo_from_sensor(extrinsics: Path, sensor: str) -> Pose:
    """Pose of a sensor of :data:`SENSORS` in the stereo frame; both in the dataset's axes.

    Raises:
        DataError: the sensor's file is missing or malformed.
    """
    path = extrinsics / f"{sensor}.txt"
    ((line, words), *others) = read_table(path, 6, "x y z roll pitch yaw").items()
    if others:
        raise DataError(f"{path}:{others[0][0]}: expected one line of x y z roll pitch yaw")
    values = parse_numbers(path, line, words)
    pose = Pose.from_xyz_rpy(values[:3], values[3:])
    return pose.inverse() if sensor in CAMERAS else pose


def vehicle_from_sensor(extrinsics: Path, sensor: str) -> Pose:
    """Pose of a sensor, in the dataset's axes, in ``vehicle``. Raises DataError as :func:`stereo_from_sensor`."""
    return TURNED @ stereo_from_sensor(extrinsics, sensor)


def stereo_from_base(extrinsics: Path) -> Pose:
    """Pose of ``base_link`` in the stereo frame. Raises DataError as :func:`stereo_from_sensor`."""
    return stereo_from_sensor(extrinsics, "ins") @ TURNED


def base_from_vehicle(extrinsics: Path) -> Pose:
    """Pose of ``vehicle`` in ``base_link``. Raises DataError as :func:`stereo_from_sensor`."""
    return (TURNED @ stereo_from_base(extrinsics)).inverse()


def read_camera_model(models: Path, name: str) -> CameraModel:
    """Intrinsics ``fx fy cx cy`` and the 4x4 matrix from the optical frame to the camera's sensor frame.

    Raises:
        DataError: the file is missing or malformed, or the matrix is not a rigid transform.
    """
    path = models / f"{name}.txt"
    rows = [parse_numbers(path, line, words) for line, words in read_table(path, 4, "4 numbers").items()]
    if len(rows) != 5 or min(rows[0][:2]) <= 0:
        raise DataError(f"{path}: expected fx fy cx cy, positive focal lengths, and 4 lines of a 4x4 matrix")
    try:
        camera_from_optical = Pose.from_matrix(np.stack(rows[1:]))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    fx, fy, cx, cy = (float(value) for value in rows[0])
    return CameraModel(fx, fy, cx, cy, camera_from_optical)


def read_lookup_table(path: Path, height: int, width: int) -> NDArray[np.float32]:
    """Where each pixel of the undistorted image lies in the distorted one: ``(2, height, width)``, column and row.

    Raises:
        DataError: the table is missing, of another size or not finite.
    """
    try:
        values = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    expected = 2 * height * width * 8
    if values.size != expected:
        raise DataError(
            f"{path}: expected {expected} bytes for images of {width} x {height} pixels, got {values.size}; "
            "is it cut short, or of another camera?"
        )
    table = values.view("<f8").reshape(2, height, width)
    if not np.isfinite(table).all():
        _, row, column = np.argwhere(~np.isfinite(table))[0]
        raise DataError(f"{path}: the entry of column {column}, row {row} is not finite")
    return table.astype(np.float32)


def undistort(image: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bilinear lookup of an ``(H, W, 3)`` image; black where the table points outside."""
    return np.asarray(cv2.remap(image, table[0], table[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), np.uint8)


class CentreCamera:
    """Reader of images of ``stereo/centre``.

    Args:
        models: folder of the camera models; None keeps images distorted, without intrinsics.

    Attributes:
        files: files of the calibration.

    Raises:
        DataError: the camera's model or lookup table is missing, or the model is malformed.
    """

    def __init__(self, models: Path | None) -> None:
        self.files: list[Path] = []
        self._size: tuple[int, int] | None = None
        self._table: NDArray[np.float32] | None = None
        self._model: CameraModel | None = None
        if models is not None:
            self.files = [models / f"{CENTRE_MODEL}.txt", models / f"{CENTRE_MODEL}_distortion_lut.bin"]
            self._model = read_camera_model(models, CENTRE_MODEL)
            if not self.files[1].is_file():
                raise DataError(
                    f"{self.files[1]} is missing; take it from the dataset's SDK, or leave images distorted by "
                    "source.robotcar.undistort=false (convert: --no-undistort)"
                )

    def optical_from_vehicle(self, extrinsics: Path) -> Pose | None:
        """Pose of ``vehicle`` in the optical frame; None without a model. Raises DataError: a file is malformed."""
        if self._model is None:
            return None
        return (vehicle_from_sensor(extrinsics, "stereo") @ self._model.camera_from_optical).inverse()

    def read(self, path: Path) -> tuple[NDArray[np.uint8], PinholeCamera | None]:
        """``(H, W, 3)`` uint8 RGB, and its intrinsics.

        Raises:
            DataError: the picture is missing, damaged or of another size than the ones before, or the lookup table
                does not fit.
        """
        image = read_bayer(path)
        height, width = image.shape[:2]
        self._size = self._size or (height, width)
        if self._size != (height, width):
            raise DataError(
                f"{path} is {width} x {height} pixels, others of its sequence are {self._size[1]} x {self._size[0]}"
            )
        if self._model is None:
            return image, None
        if self._table is None:
            self._table = read_lookup_table(self.files[1], height, width)
        model = self._model
        return undistort(image, self._table), PinholeCamera(width, height, model.fx, model.fy, model.cx, model.cy)


def read_bayer(path: Path) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB of a raw stereo image, whose Bayer pattern begins green, blue / red, green.

    Raises:
        DataError: the file is missing, damaged, or not an 8-bit single-channel picture.
    """
    try:
        pixels = unpack_image(path.read_bytes(), "the image")
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, MessageError) as error:
        raise DataError(f"{path}: {error}") from error
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or min(pixels.shape) < 2:
        raise DataError(
            f"{path}: expected a raw Bayer image, 8 bits and one channel, got {pixels.dtype} {pixels.shape}; "
            "give the dataset's own files"
        )
    # OpenCV names a pattern by the pixels one row down and one column right: green-blue/red-green is GR there.
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BayerGR2RGB), np.uint8)
