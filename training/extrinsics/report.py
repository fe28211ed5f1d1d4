# SPDX-License-Identifier: Apache-2.0
"""The job behind ``vmloc extrinsics``: estimate a mount from a recording, and print where to put the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import body_twists
from training.extrinsics.edges import depth_edges, image_edges, scan_edges
from training.extrinsics.estimate import Correction, EdgeFrame, estimate_correction
from training.sources.base import Source
from training.sources.factory import announce, open_sources
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from training.sources.seven_scenes import SevenScenesSource
from vmloc_ros.core.cameras import undistorted
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame
from vmloc_ros.core.geometry import Pose, rotation_vector_from_quaternion

Array = NDArray[np.float64]

_LONGEST_GAP_NS = 1_000_000_000  # frames farther apart give no velocity


@dataclass(frozen=True, slots=True, eq=False)
class MountEstimate:
    """An estimated mount.

    Attributes:
        sensor: ``depth`` or ``lidar``.
        camera_from_sensor: the estimate.
        correction: its difference from the present mount, with uncertainty and scores.
        text: report for the user.
    """

    sensor: str
    camera_from_sensor: Pose
    correction: Correction
    text: str


def estimate_mount(
    data: Sequence[Path], *, split: str, options: SourceOptions, frames: int, sensor: str | None = None
) -> MountEstimate:
    """Where the depth camera or lidar is in the camera's frame.

    Args:
        data: recordings of one arrangement of sensors.
        frames: number of frames to use, evenly spread.
        sensor: ``depth`` or ``lidar``; None takes the lidar, or depth where the data have no lidar.

    Raises:
        DataError: data lack a sensor, intrinsics or a present mount, or do not determine the estimate.
    """
    # Depth must lie in the depth camera's own frame: an offset from the options is where the search begins.
    plain = replace(options, register_depth=True, depth_mount=None)
    sensor, sources = _open(data, split, plain, sensor)
    announce(sources)
    twists = _twists_by_stamp(sources)
    stride = options.stride * -(-len(twists) // frames)
    _, sources = _open(data, split, replace(plain, stride=stride), sensor)
    given = (options.colour_from_depth if sensor == DEPTH else None) or Pose.identity()
    found = [
        edges_of(source, frame, sensor, given, twists.get(frame.stamp_ns, np.zeros(6)))
        for source in sources
        for frame in _with_both(source, sensor)
    ]
    correction = estimate_correction([edges for edges, _ in found])
    present = found[0][1]
    estimate = correction.true_from_present @ present
    text = _text(sources[0], sensor, len(found), present, estimate, correction)
    return MountEstimate(sensor, estimate, correction, text)


def _open(data: Sequence[Path], split: str, options: SourceOptions, sensor: str | None) -> tuple[str, list[Source]]:
    """The sensor to use, and sources that have both it and images."""
    problems: list[str] = []
    for name in (LIDAR, DEPTH) if sensor is None else (sensor,):
        try:
            sources = [source for path in data for source in open_sources(path, split, options, (IMAGE, name))]
        except DataError as error:
            problems.append(str(error))
            continue
        if all({IMAGE, name} <= set(source.modalities) for source in sources):
            return name, sources
        problems.append(f"{sources[0].name} has {', '.join(sources[0].modalities)}, no {name}")
    raise DataError("; ".join(problems))


def _twists_by_stamp(sources: Sequence[Source]) -> dict[int, Array]:
    """Velocity ``(6,)`` of the body, in its own axes, at each frame."""
    twists: dict[int, Array] = {}
    for source in sources:
        stamps = source.stamps_ns()
        sequences = torch.tensor(np.cumsum(np.diff(stamps, prepend=stamps[0]) > _LONGEST_GAP_NS))
        rows = body_twists(source.poses(), stamps, sequences).double()
        twists.update(zip(stamps, rows.nan_to_num().numpy(), strict=True))
    return twists


def _with_both(source: Source, sensor: str) -> Iterator[Frame]:
    for sample in source:
        frame = sample.frame
        if {IMAGE, sensor} <= set(frame.modalities):
            if frame.camera is None:
                raise DataError(f"{source.name}: the camera's intrinsics are not known; give a CameraInfo that fits it")
            yield undistorted(frame)


def edges_of(source: Source, frame: Frame, sensor: str, given: Pose, twist: Array) -> tuple[EdgeFrame, Pose]:
    """A frame's edges, and the ``camera_from_sensor`` by which its points are placed."""
    assert frame.image is not None and frame.camera is not None  # noqa: PT018 (for the type checker)
    if sensor == DEPTH:
        assert frame.depth_m is not None
        points, present = depth_edges(frame.depth_m, frame.camera), given
        if IMAGE in source.mounts and DEPTH in source.mounts:
            present = given @ source.mounts[IMAGE].inverse() @ source.mounts[DEPTH]
    else:
        assert frame.cloud is not None
        if frame.camera_from_lidar is None:
            raise DataError(
                f"{source.name}: /tf_static has no transform to the lidar; give an approximate one: "
                "--set source.mounts.image=[x,y,z,roll,pitch,yaw] --set source.mounts.lidar=[x,y,z,roll,pitch,yaw]"
            )
        points, returns = scan_edges(frame.cloud.xyz_m)
        present = frame.camera_from_lidar
        if frame.cloud.time_s is not None and LIDAR in source.mounts:
            points = _at_stamp(points, frame.cloud.time_s[returns], twist, source.mounts[LIDAR])
    return EdgeFrame(image_edges(frame.image), present.transform(points), frame.camera), present


def _at_stamp(points: Array, time_s: NDArray[np.float32], twist: Array, body_from_lidar: Pose) -> Array:
    """Where points ``(N, 3)`` that were measured at other times would be seen at the frame's stamp."""
    body = body_from_lidar.transform(points)
    body = body + time_s[:, None] * (twist[:3] + np.cross(twist[3:], body))
    return body_from_lidar.inverse().transform(body)


def _text(source: Source, sensor: str, frames: int, present: Pose, estimate: Pose, correction: Correction) -> str:
    moved = np.concatenate(
        [
            correction.true_from_present.position_m,
            np.degrees(rotation_vector_from_quaternion(correction.true_from_present.quaternion_wxyz)),
        ]
    )
    std = np.concatenate([correction.std[:3], np.degrees(correction.std[3:])])
    lines = [
        f"{source.name}: {sensor} and image, {frames} frames",
        "correction in the camera's optical frame (x right, y down, z ahead):",
        *(
            f"  {axis}  {shift:+.4f} +- {shift_std:.4f} m   {turn:+.3f} +- {turn_std:.3f} deg about it"
            for axis, shift, shift_std, turn, turn_std in zip(
                "xyz", moved[:3], std[:3], moved[3:], std[3:], strict=True
            )
        ),
        f"edges meet (0 is chance): {correction.score_before:.3f} before, {correction.score_after:.3f} after; "
        f"on held-out frames {correction.gain:+.3f} +- {correction.gain_std:.3f}",
    ]
    if not correction.better:
        return "\n".join([*lines, "Held-out frames do not prefer it: keep the present mount."])
    return "\n".join([*lines, *instructions(source, sensor, estimate)])


def instructions(source: Source, sensor: str, camera_from_sensor: Pose) -> list[str]:
    """Lines on where to put an estimate: into options, the robot's description, or wherever the user keeps mounts."""
    if isinstance(source, SevenScenesSource):
        values = ", ".join(f"{value:.5f}" for value in [*camera_from_sensor.position_m, *_rpy(camera_from_sensor)])
        return ["Train and evaluate with:", f"  source: {{register_depth: true, depth_mount: [{values}]}}"]
    if isinstance(source, RosbagSource) and source.sensor_frames[IMAGE] != source.sensor_frames[sensor]:
        parent, child, mount = source.sensor_frames[IMAGE], source.sensor_frames[sensor], camera_from_sensor
        if sensor == LIDAR and IMAGE in source.mounts:
            parent, mount = source.body_frame, source.mounts[IMAGE] @ camera_from_sensor
        return [
            f"Put in the robot's description, in place of what leads from {parent} to {child}:",
            f"  ros2 run tf2_ros static_transform_publisher {_arguments(mount)} --frame-id {parent} "
            f"--child-frame-id {child}",
        ]
    return [f"The {sensor}'s frame in the camera's optical frame:", f"  {_arguments(camera_from_sensor)}"]


def _arguments(pose: Pose) -> str:
    (x, y, z), (qw, qx, qy, qz) = pose.position_m, pose.quaternion_wxyz
    return f"--x {x:.5f} --y {y:.5f} --z {z:.5f} --qx {qx:.6f} --qy {qy:.6f} --qz {qz:.6f} --qw {qw:.6f}"


def _rpy(pose: Pose) -> tuple[float, float, float]:
    """Fixed-axis roll, pitch and yaw in radians."""
    r = pose.rotation
    return (
        float(np.arctan2(r[2, 1], r[2, 2])),
        float(np.arctan2(-r[2, 0], np.hypot(r[2, 1], r[2, 2]))),
        float(np.arctan2(r[1, 0], r[0, 0])),
    )
