# SPDX-License-Identifier: Apache-2.0
"""One pass through the chosen frames of a recording: what each sensor measured of its own motion, and how pictures
look.

Holds pictures and scans only as long as the next one is compared with them, but for a few frames to compare sensors by
and the scans of places that are seen twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from training.check.image_motion import SHORTEST_SIDE, grey_of, turn_between
from training.check.motions import Motion
from training.check.pictures import Look, look_of
from training.check.pose_curve import PoseCurve
from training.check.registration import Surface, depth_points, register, surface_of
from training.check.sampling import STEP_S, Stretch
from training.sources.base import Source, samples_at
from vmloc_ros.core.cameras import resized, undistorted
from vmloc_ros.core.errors import VmlocError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame, PointCloud
from vmloc_ros.core.geometry import Pose, quaternion_from_matrix, rotation_vector_from_quaternion

Array = NDArray[np.float64]

_KEPT_FRAMES = 48  # to compare sensors by
_SWEEP_PARTS = 40  # of a sweep: the sensor moves on from one to the next
_STRIDE_S = 0.55
_FAR_FROM_PLACE_NS = 300_000_000  # a frame this much later does not stand for the frame of a place
_LONGEST_PAIR_S = 0.6  # between measurements that are compared


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """The planes that a ranging sensor saw.

    Attributes:
        time_s: when, by its stamp.
        surface: in the sensor's frame at that time.
        map_from_sensor: by the poses.
    """

    time_s: float
    surface: Surface
    map_from_sensor: Pose


@dataclass(slots=True, eq=False)
class Observed:
    """What was observed in a recording.

    Attributes:
        motions: by sensor, in the stretches, from each measurement to the next.
        strides: by ranging sensor, in the stretches, over longer times: what registration errs by is the same for a
            step
            of centimetres and for one of decimetres.
        probes: by sensor, where poses jump.
        looks: of pictures.
        scans: by row, at places that are seen twice.
        frames: some with two sensors, undistorted, pictures no larger than needed.
        ranges_m: median range of each scan.
        shares: of each scan's points that lie on the planes of the scan before.
        samples: a few pictures, to show.
        seen: frames that were read.
        corner_tangent: of the angle from the picture's middle to its corner; None without a camera.
        pixel_rad: angle that a pixel of the tracked pictures sees.
        without_camera: pictures whose camera is not known.
        problem: why reading ended early; empty where it did not.
    """

    motions: dict[str, list[Motion]] = field(default_factory=lambda: defaultdict(list))
    strides: dict[str, list[Motion]] = field(default_factory=lambda: defaultdict(list))
    probes: dict[str, list[Motion]] = field(default_factory=lambda: defaultdict(list))
    looks: list[Look] = field(default_factory=list)
    scans: dict[int, Scan] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    ranges_m: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    samples: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    seen: int = 0
    corner_tangent: float | None = None
    pixel_rad: float = 0.0
    without_camera: int = 0
    problem: str = ""

    @property
    def typical_range_m(self) -> float | None:
        """Median distance of what is seen; None without a ranging sensor."""
        return float(np.median(self.ranges_m)) if self.ranges_m else None


def observe(
    source: Source, curve: PoseCurve, stretches: Sequence[Stretch], jumps: Sequence[Stretch], places: Sequence[int]
) -> Observed:
    """Read some frames of a recording.

    Args:
        curve: its poses; times are seconds since its first frame.
        stretches: rows to observe motions in.
        jumps: rows around what may be jumps of poses.
        places: rows of places that are seen twice.
    """
    pass_ = _Pass(source, curve, stretches, jumps, places)
    try:
        pass_.read()
    except VmlocError as error:
        pass_.observed.problem = str(error)
    return pass_.observed


@dataclass(slots=True, eq=False)
class _Run:
    """Rows in a row, and the latest measurement of each sensor there: its time and what it saw."""

    rows: Stretch
    number: int
    is_jump: bool
    grey: tuple[float, NDArray[np.uint8]] | None = None
    scans: dict[str, Scan] = field(default_factory=dict)
    stride_from: dict[str, Scan] = field(default_factory=dict)

    @property
    def step_s(self) -> float:
        """Measurements nearer in time are not compared; at jumps all are."""
        return 0.0 if self.is_jump else STEP_S


class _Pass:
    def __init__(
        self,
        source: Source,
        curve: PoseCurve,
        stretches: Sequence[Stretch],
        jumps: Sequence[Stretch],
        places: Sequence[int],
    ) -> None:
        self._source, self._curve = source, curve
        self._stamps = source.stamps_ns()
        self._runs = [_Run(rows, n, False) for n, rows in enumerate(stretches)]
        self._runs += [_Run(rows, n, True) for n, rows in enumerate(jumps, start=len(stretches))]
        # A scan may be missing in a frame: one of its neighbours will do.
        self._places = {row + side: row for side in (-1, 1, 0) for row in places}
        self._mounts = source.mounts
        in_stretches = sum(rows.end - rows.first for rows in stretches)
        self._keep_every = max(1, in_stretches // _KEPT_FRAMES)
        self._show_every = max(1, in_stretches // 8)
        self.observed = Observed()

    def read(self) -> None:
        by_row: dict[int, list[_Run]] = defaultdict(list)
        for run in self._runs:
            for row in range(run.rows.first, run.rows.end):
                by_row[row].append(run)
        rows = sorted(row for row in {*by_row, *self._places} if 0 <= row < len(self._stamps))
        row_of = {self._stamps[row]: row for row in rows}
        for sample in samples_at(self._source, row_of.keys()):
            row = row_of[sample.frame.stamp_ns]
            self._take(row, sample.frame, by_row[row])

    def _take(self, row: int, frame: Frame, runs: Sequence[_Run]) -> None:
        self.observed.seen += 1
        frame = undistorted(frame)
        if any(not run.is_jump for run in runs):
            self._keep(frame)
        time_s = (frame.stamp_ns - self._stamps[0]) * 1e-9
        if frame.image is not None and runs:
            self._take_image(frame, time_s, runs)
        for sensor, is_there in ((LIDAR, frame.cloud is not None), (DEPTH, frame.depth_m is not None)):
            if is_there:
                self._take_scan(sensor, row, frame, time_s, runs)

    def _keep(self, frame: Frame) -> None:
        observed = self.observed
        if observed.seen % self._show_every == 1 and frame.image is not None:
            observed.samples[frame.stamp_ns] = _small(frame).image  # type: ignore[assignment]
        if observed.seen % self._keep_every == 0 and len(frame.modalities) > 1 and len(observed.frames) < _KEPT_FRAMES:
            observed.frames.append(_small(frame))

    def _take_image(self, frame: Frame, time_s: float, runs: Sequence[_Run]) -> None:
        assert frame.image is not None
        waiting = [run for run in runs if run.grey is None or time_s - run.grey[0] >= run.step_s]
        if not waiting:
            return
        grey = grey_of(frame.image)
        if any(not run.is_jump for run in waiting):
            self.observed.looks.append(look_of(frame.stamp_ns, grey))
        if frame.camera is None:
            self.observed.without_camera += 1
            return
        camera = frame.camera
        self.observed.corner_tangent = float(np.hypot(camera.width / camera.fx, camera.height / camera.fy) / 2)
        self.observed.pixel_rad = camera.width / camera.fx / grey.shape[1]
        for run in waiting:
            if run.grey is not None and time_s - run.grey[0] < _LONGEST_PAIR_S and run.grey[1].shape == grey.shape:
                turn = turn_between(run.grey[1], grey, frame.camera)
                if turn is not None:
                    covariance = np.eye(6)
                    covariance[3:, 3:] = turn.covariance
                    vector = rotation_vector_from_quaternion(quaternion_from_matrix(turn.rotation))
                    motion = Motion(run.grey[0], time_s, np.zeros(3), vector, covariance, run.number)
                    (self.observed.probes if run.is_jump else self.observed.motions)[IMAGE].append(motion)
            run.grey = time_s, grey

    def _take_scan(self, sensor: str, row: int, frame: Frame, time_s: float, runs: Sequence[_Run]) -> None:
        waiting = [run for run in runs if sensor not in run.scans or time_s - run.scans[sensor].time_s >= run.step_s]
        place = self._place_of(row)
        is_new_place = place is not None and place not in self.observed.scans
        if not waiting and not is_new_place:
            return
        scan = self._scan(sensor, frame, time_s)
        if scan is None:
            return
        if is_new_place and place is not None:
            self.observed.scans[place] = scan
        self.observed.ranges_m.append(float(np.median(np.linalg.norm(scan.surface.points_m, axis=1))))
        for run in waiting:
            self._add_motions(sensor, run, scan)

    def _place_of(self, row: int) -> int | None:
        """The place for whose scan a frame will do."""
        place = self._places.get(row)
        if place is None or abs(self._stamps[row] - self._stamps[place]) > _FAR_FROM_PLACE_NS:
            return None
        return place

    def _add_motions(self, sensor: str, run: _Run, scan: Scan) -> None:
        observed, before = self.observed, run.scans.get(sensor)
        run.scans[sensor] = scan
        if before is None or scan.time_s - before.time_s >= _LONGEST_PAIR_S:
            run.stride_from[sensor] = scan
            return
        found = self._motion(run, before, scan)
        if run.is_jump:
            observed.probes[sensor] += found
            return
        observed.motions[sensor] += found
        if scan.time_s - run.stride_from[sensor].time_s >= _STRIDE_S:
            observed.strides[sensor] += self._motion(run, run.stride_from[sensor], scan)
            run.stride_from[sensor] = scan

    def _motion(self, run: _Run, before: Scan, scan: Scan) -> list[Motion]:
        """The motion from one scan to another; empty where they cannot be registered."""
        start = before.map_from_sensor.inverse() @ scan.map_from_sensor
        found = register(before.surface, scan.surface, start)
        if found is None:
            return []
        self.observed.shares.append(found.share)
        pose = found.first_from_second
        turn = rotation_vector_from_quaternion(pose.quaternion_wxyz)
        return [Motion(before.time_s, scan.time_s, pose.position_m, turn, found.covariance, run.number)]

    def _scan(self, sensor: str, frame: Frame, time_s: float) -> Scan | None:
        mount = self._mounts.get(sensor, Pose.identity())
        if sensor == DEPTH:
            if frame.camera is None:
                return None
            points, middle_s = depth_points(frame), 0.0
        else:
            assert frame.cloud is not None
            points, middle_s = _at_one_time(frame.cloud, self._curve, time_s, mount)
        at = self._sensor_at(np.array([time_s + middle_s]), mount)
        surface = surface_of(points)
        if at is None or surface is None:
            return None
        return Scan(time_s + middle_s, surface, Pose(at[0][0], quaternion_from_matrix(at[1][0])))

    def _sensor_at(self, times_s: Array, mount: Pose) -> tuple[Array, Array] | None:
        return _sensor_at(self._curve, times_s, mount)


def _sensor_at(curve: PoseCurve, times_s: Array, mount: Pose) -> tuple[Array, Array] | None:
    """Positions and rotations of the sensor; None where no poses are."""
    p, R, known = curve.at(times_s)
    if not known.all():
        return None
    return p + R @ mount.position_m, R @ mount.rotation


def _at_one_time(cloud: PointCloud, curve: PoseCurve, time_s: float, mount: Pose) -> tuple[Array, float]:
    """Points as if all had been measured in the middle of the sweep, by the poses; and when that is after the stamp."""
    xyz = cloud.xyz_m.astype(np.float64)
    there = np.isfinite(xyz).all(axis=1) & xyz.any(axis=1)
    xyz = xyz[there]
    if cloud.time_s is None or not len(xyz):
        return xyz, 0.0
    times = cloud.time_s[there].astype(np.float64)
    begin, end = float(times.min()), float(times.max())
    middle = (begin + end) / 2
    if end - begin < 1e-4:
        return xyz, middle
    grid = np.linspace(begin, end, _SWEEP_PARTS + 1)
    at = _sensor_at(curve, time_s + np.concatenate([[middle], grid]), mount)
    if at is None:
        return xyz, middle
    (p0, *p), (R0, *R) = at
    parts = np.rint((times - begin) / (end - begin) * _SWEEP_PARTS).astype(int)
    moved = np.einsum("nij,nj->ni", np.array(R)[parts], xyz) + np.array(p)[parts]
    return (moved - p0) @ R0, middle


def _small(frame: Frame) -> Frame:
    """The frame with a picture no larger than needed."""
    if frame.image is None or (scale := SHORTEST_SIDE / min(frame.image.shape[:2])) >= 1:
        return frame
    image = cv2.resize(frame.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    camera = None if frame.camera is None else resized(frame.camera, *image.shape[:2])
    return replace(frame, image=np.asarray(image, np.uint8), camera=camera)
