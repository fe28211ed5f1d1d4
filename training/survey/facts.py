# SPDX-License-Identifier: Apache-2.0
"""Measured facts about recordings, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose


@dataclass(frozen=True, slots=True)
class Recording:
    """One source of frames.

    Attributes:
        kind: ``bag``, ``seven_scenes``, ``tum``, ``kitti`` or ``robotcar``; else the name of the source's class.
        frames: with a pose, in the split that was asked for.
        duration_s: from the first to the last of these frames.
        report: frames and messages that were used and dropped, as text.
    """

    name: str
    kind: str
    frames: int
    duration_s: float
    report: str


@dataclass(frozen=True, slots=True)
class CameraFacts:
    """Pictures of a sample of frames.

    Attributes:
        size: width and height in pixels.
        is_calibrated: whether a camera matrix is known.
        distortion: model of the lens; empty where pictures are those of a pinhole camera, or the camera is not known.
        brightness: median over frames of the mean grey value, 0 (black) to 1.
        dark_share: share of frames whose mean grey value is below 0.12.
    """

    size: tuple[int, int]
    is_calibrated: bool
    distortion: str
    brightness: float
    dark_share: float


@dataclass(frozen=True, slots=True)
class DepthFacts:
    """Depth images of a sample of frames.

    Attributes:
        size: width and height in pixels.
        measured_share: share of pixels with a measurement.
        median_m: median depth.
        far_m: 99th percentile of depths.
    """

    size: tuple[int, int]
    measured_share: float
    median_m: float
    far_m: float


@dataclass(frozen=True, slots=True)
class LidarModel:
    """A lidar as its clouds show it.

    Attributes:
        rings: number of elevations at which it measures; 0 where points do not lie at separate elevations.
        elevation_deg: lowest and highest elevation with returns: of rings their own, else 0.1st and 99.9th percentile.
        azimuth_deg: limits of the field of view; -180 and 180 for the full circle.
        columns: points of a ring in a scan, over the field of view; of all points where there are no rings.
        median_m: median range.
        far_m: 99.5th percentile of ranges.
        height_m: 0.5th and 99.5th percentile of heights z in the lidar's frame.
        intensity: 99th percentile; 0 where there is none.
        points: median number of returns in a scan.
        sweep_s: span of the points' times within a scan; 0 where points have no times of their own.
    """

    rings: int
    elevation_deg: tuple[float, float]
    azimuth_deg: tuple[float, float]
    columns: int
    median_m: float
    far_m: float
    height_m: tuple[float, float]
    intensity: float
    points: int
    sweep_s: float


@dataclass(frozen=True, slots=True)
class PathFacts:
    """Where the poses of all recordings lie.

    Attributes:
        driven_m: length of the path.
        road_m: length of road or corridor that the path covers, each part counted once.
        extent_m: size of the box around all positions.
        step_m: median distance from a frame to the next.
        rate_hz: median rate of frames.
        revisited: share of frames whose view a frame of another recording, or at least 10 s away in time, also shows.
    """

    driven_m: float
    road_m: float
    extent_m: tuple[float, float, float]
    step_m: float
    rate_hz: float
    revisited: float


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What recordings hold.

    Attributes:
        recordings: one for each source.
        map_frame: frame of the poses.
        body_frame: whose poses they are.
        modalities: what all recordings have.
        left_out: what only some of them have, or what cannot be read, with the reason.
        mounted: the modalities whose sensor's mount on the body is known.
        camera: None without pictures.
        depth: None without depth images.
        lidar: None without clouds.
        path: facts about the poses.
        complete_share: share of sampled frames that have every modality.
        read_s: seconds to read and decode one frame after the other, for each.
        poses: of all frames, recording after recording.
        mounts: ``body_from_sensor`` of the first recording.
        sample: some of the frames.
    """

    recordings: tuple[Recording, ...]
    map_frame: str
    body_frame: str
    modalities: tuple[str, ...]
    left_out: tuple[str, ...]
    mounted: tuple[str, ...]
    camera: CameraFacts | None
    depth: DepthFacts | None
    lidar: LidarModel | None
    path: PathFacts
    complete_share: float
    read_s: float
    poses: tuple[Pose, ...] = field(repr=False)
    mounts: dict[str, Pose] = field(repr=False)
    sample: tuple[Sample, ...] = field(repr=False)

    @property
    def frames(self) -> int:
        """Of all recordings."""
        return len(self.poses)
