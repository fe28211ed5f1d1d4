# SPDX-License-Identifier: Apache-2.0
"""Degraded and missing sensors, to evaluate robustness (VMLoc, Table 4 and Figure 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, MODALITIES, Frame, PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import PreprocessConfig
from vmloc_ros.core.projection import CylindricalConfig

WHOLE, MASKED, MISSING, ZEROED = 0, 1, 2, 3
_WORDS = {MASKED: "masked", MISSING: "missing", ZEROED: "zeroed"}
_FIELDS = {IMAGE: "image", DEPTH: "depth_m", LIDAR: "cloud"}
# The paper's mask is 128 pixels wide, the shortest side 256: of a 4:3 image it covers this share.
_MASKED_SHARE = 3 / 16
_EDGE_CELLS = 1e-3  # beams on the limit of the field of view are in the picture, in spite of rounding

CellIndices = tuple[NDArray[np.float64], NDArray[np.float64]]  # row and column of each point
Window = tuple[slice, slice]
T = TypeVar("T", NDArray[np.uint8], NDArray[np.float32])


@dataclass(frozen=True, slots=True)
class Corruption:
    """Corruption of every frame.

    Attributes:
        levels: per modality 0 (none), 1 (masked in part), 2 (missing) or 3 (zeroed: present, but black, empty or
            without a measurement, as published code removes an input); 0 for those not named.
        seed: of the positions of the masks.
    """

    levels: Mapping[str, int]
    seed: int = 0

    def __str__(self) -> str:
        """Such as ``image masked, lidar missing, seed 0``; empty without corruption."""
        words = [f"{name} {_WORDS[level]}" for name, level in self._corrupted()]
        return ", ".join([*words, f"seed {self.seed}"]) if words else ""

    @property
    def tag(self) -> str:
        """Such as ``image1_lidar2``, for file names; empty without corruption."""
        return "_".join(f"{name}{level}" for name, level in self._corrupted())

    def check(self, taken: Sequence[str]) -> None:
        """Check that a model with these input modalities can be evaluated with the corruption.

        Raises:
            ConfigError: a modality is not one of them, or a level or the seed is out of range.
            DataError: no input would remain.
        """
        for name, level in self.levels.items():
            if name not in taken:
                raise ConfigError(f"corruption of {name!r}: the model takes {', '.join(taken)}")
            if level not in (WHOLE, *_WORDS):
                known = ", ".join(f"{number} ({word})" for number, word in {WHOLE: "none", **_WORDS}.items())
                raise ConfigError(f"corruption of {name} must be one of {known}, got {level}")
        if self.seed < 0:
            raise ConfigError(f"the corruption's seed must not be negative, got {self.seed}")
        if all(self.levels.get(name) == MISSING for name in taken):
            raise DataError(f"corruption removes all inputs of the model ({', '.join(taken)}); keep at least one")

    def _corrupted(self) -> list[tuple[str, int]]:
        return [(name, level) for name, level in self.levels.items() if level != WHOLE]


NO_CORRUPTION = Corruption({})


def parse_corruption(assignments: Sequence[str], seed: int = 0) -> Corruption:
    """From ``modality=level`` strings. Raises ConfigError: one is of another form."""
    levels = {}
    for assignment in assignments:
        name, _, level = assignment.partition("=")
        if not name or not level.isdecimal():
            raise ConfigError(f"corruption {assignment!r} is not of the form modality=level, such as image=1")
        levels[name] = int(level)
    return Corruption(levels, seed)


def corrupt(frame: Frame, levels: Mapping[str, int], seed: int, preprocess: PreprocessConfig) -> Frame:
    """A corrupted copy of the frame; the original is not changed.

    Level 1 masks a square of half the picture's shortest side (VMLoc: 128 of 256 pixels), anywhere in the sensor's
    whole picture: the image becomes black there, depth loses its measurements. A cloud loses the points that fall
    into such a square of the camera's picture. Where the model projects it to a cylinder, it loses those in a window
    of the range image with half its rows and 3/16 of its area, which is the square's share of a 4:3 image. The
    window's position depends on the seed, the stamp and the modality alone.

    Args:
        levels: see :class:`Corruption`.
        preprocess: the model's projection of clouds.

    Raises:
        DataError: the cloud is to be masked in the camera, but the frame lacks the camera or the extrinsics.
    """
    for name, level in levels.items():
        value = getattr(frame, _FIELDS[name])
        if value is None or level == WHOLE:
            continue
        if level == MISSING:
            value = None
        elif level == ZEROED:
            value = _select(value, slice(0)) if name == LIDAR else np.zeros_like(value)
        else:
            rng = np.random.default_rng((seed, frame.stamp_ns, MODALITIES.index(name)))
            value = _mask_cloud(value, frame, preprocess, rng) if name == LIDAR else _mask_picture(value, rng)
        frame = replace(frame, **{_FIELDS[name]: value})
    return frame


def _mask_picture(picture: T, rng: np.random.Generator) -> T:
    """Set a random square to 0, which is black in images and "no measurement" in depth."""
    masked = picture.copy()
    masked[_square(*picture.shape[:2], rng)] = 0
    return masked


def _mask_cloud(cloud: PointCloud, frame: Frame, preprocess: PreprocessConfig, rng: np.random.Generator) -> PointCloud:
    if preprocess.lidar_projection == "cylindrical":
        cylinder = preprocess.cylinder
        rows = max(1, cylinder.rows // 2)
        columns = round(_MASKED_SHARE * cylinder.rows * cylinder.columns / rows)
        window = _window(cylinder.rows, cylinder.columns, rows, columns, rng)
        row, column = _cylinder_cells(cloud.xyz_m, cylinder)
    elif frame.camera is None or frame.camera_from_lidar is None:
        raise DataError(
            f"frame at {frame.stamp_ns} ns: masking the cloud in the camera needs intrinsics and the lidar's extrinsics"
        )
    else:
        window = _square(frame.camera.height, frame.camera.width, rng)
        row, column = _camera_cells(cloud.xyz_m, frame.camera.undistorted, frame.camera_from_lidar)
    return _select(cloud, ~(_within(row, window[0]) & _within(column, window[1])))


def _select(cloud: PointCloud, points: NDArray[np.bool_] | slice) -> PointCloud:
    return PointCloud(
        cloud.xyz_m[points],
        None if cloud.intensity is None else cloud.intensity[points],
        None if cloud.time_s is None else cloud.time_s[points],
    )


def _square(height: int, width: int, rng: np.random.Generator) -> Window:
    side = min(height, width) // 2
    return _window(height, width, side, side, rng)


def _window(height: int, width: int, rows: int, columns: int, rng: np.random.Generator) -> Window:
    """A window of ``rows x columns`` cells in a picture, uniformly distributed over all positions."""
    top, left = (int(rng.integers(0, room + 1)) for room in (height - rows, width - columns))
    return slice(top, top + rows), slice(left, left + columns)


def _within(cell: NDArray[np.float64], span: slice) -> NDArray[np.bool_]:
    return (cell >= span.start) & (cell < span.stop)


def _cylinder_cells(xyz_m: NDArray[np.float32], config: CylindricalConfig) -> CellIndices:
    """Cells of the range image that points ``(N, 3)`` fall into; -1 outside of it."""
    x, y, z = xyz_m.astype(np.float64).T
    return (
        _angular_cell(np.arctan2(z, np.hypot(x, y)), config.rows, config.elevation_min_deg, config.elevation_max_deg),
        _angular_cell(np.arctan2(y, x), config.columns, config.azimuth_min_deg, config.azimuth_max_deg),
    )


def _angular_cell(angle_rad: NDArray[np.float64], cells: int, low_deg: float, high_deg: float) -> NDArray[np.float64]:
    offset = (math.radians(high_deg) - angle_rad) * cells / math.radians(high_deg - low_deg)
    inside = (offset >= -_EDGE_CELLS) & (offset <= cells + _EDGE_CELLS)
    return np.where(inside, np.floor(offset).clip(0, cells - 1), -1)


def _camera_cells(xyz_m: NDArray[np.float32], camera: PinholeCamera, camera_from_lidar: Pose) -> CellIndices:
    """Pixels that points ``(N, 3)`` fall into, centres at integers; -1 behind the camera."""
    with np.errstate(divide="ignore", invalid="ignore"):  # "no return" is NaN, infinite or zero
        x, y, z = camera_from_lidar.transform(xyz_m).T
        row = np.floor(camera.fy * y / z + camera.cy + 0.5)
        column = np.floor(camera.fx * x / z + camera.cx + 0.5)
    return np.where(z > 0, row, -1), np.where(z > 0, column, -1)
