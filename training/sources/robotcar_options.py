# SPDX-License-Identifier: Apache-2.0
"""How to read Oxford RobotCar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PoseSource = Literal["ins", "rtk", "gps", "vo"]
LidarName = Literal["lms_front", "lms_rear", "ldmrs", "velodyne_left", "velodyne_right"]


@dataclass(frozen=True, slots=True)
class RobotCarOptions:
    """Options of RobotCar sequences.

    Attributes:
        scene: which sequences of a folder of sequences are for training and which for testing: ``loop``, ``full``, or
            a text file with lines ``train NAME`` and ``test NAME``.
        allow_missing: use those sequences of the split that are there, instead of stopping.
        poses: ``ins``, ``rtk`` (the post-processed file, published apart), ``gps`` (heading from the direction of
            motion, no roll and pitch) or ``vo`` (integrated; drifts, starts at the origin).
        drop_bad_status: do without the INS's rows whose status is not INS_SOLUTION_GOOD.
        lidar: whose scans. ``lms_front`` and ``lms_rear`` sweep an upright plane across the road: what they saw in the
            past lies beside and behind the car, in a cylindrical picture but not in the camera's.
        accumulate_m: scans of so many metres driven before the image make its cloud; 0 takes the latest scan alone.
            None is 0 for a Velodyne, whose scan shows the surroundings, and 20 for the others: of a planar scanner that
            is the facades on both sides in 100,000 points, driven in three to five seconds, within which the poses
            hardly drift.
        undistort: by the camera model's lookup table; without, frames carry no intrinsics.
        extrinsics: folder of the sensors' extrinsics (of the dataset's SDK); empty looks for ``extrinsics`` in the
            sequence's folder and in the folder above.
        models: folder of the camera models and lookup tables; likewise ``models``.
    """

    scene: str = "loop"
    allow_missing: bool = False
    poses: PoseSource = "ins"
    drop_bad_status: bool = False
    lidar: LidarName = "lms_front"
    accumulate_m: float | None = None
    undistort: bool = True
    extrinsics: str = ""
    models: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.distance_m < float("inf"):
            raise ValueError(f"accumulate_m must be 0 or more metres, got {self.accumulate_m}")

    @property
    def distance_m(self) -> float:
        """``accumulate_m``, or its default."""
        if self.accumulate_m is not None:
            return self.accumulate_m
        return 0.0 if self.lidar.startswith("velodyne") else 20.0
