# SPDX-License-Identifier: Apache-2.0
"""Whether lidar or depth lie on the picture: what ``vmloc extrinsics`` does, with the frames that were read anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.check.findings import SIGNIFICANT, Finding, Loss, level_of
from training.check.pose_curve import PoseCurve
from training.extrinsics.estimate import Correction, estimate_correction
from training.extrinsics.report import edges_of, instructions
from training.sources.base import Source
from training.sources.options import SourceOptions
from training.sources.seven_scenes import SevenScenesSource
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame
from vmloc_ros.core.geometry import (
    Pose,
    quaternion_conjugate,
    quaternion_from_matrix,
    quaternion_multiply,
    rotation_vector_from_quaternion,
)

_HALF_STEP_S = 0.05  # to either side of a frame, for the body's velocity
_TOPIC = "{} on picture"


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """A comparison of a ranging sensor with the camera.

    Attributes:
        finding: what it found.
        sensor: ``lidar`` or ``depth``.
        frame: one to show.
        edges_m: ``(N, 3)`` its edges of range in the optical frame, by the present mounts.
        correction: None where it cannot be determined.
    """

    finding: Finding
    sensor: str
    frame: Frame | None = None
    edges_m: NDArray[np.float64] | None = None
    correction: Correction | None = None


def alignments(
    source: Source, frames: Sequence[Frame], curve: PoseCurve, late_s: dict[str, float], options: SourceOptions
) -> list[Alignment]:
    """Compare the edges of lidar and of depth with those of the pictures.

    Args:
        frames: undistorted, in the order of time, with pictures of one size.
        late_s: by sensor, by how much its stamps are late; undone first, as it would pass for a wrong mount.
    """
    found = []
    for sensor in (LIDAR, DEPTH):
        own = [frame for frame in frames if {IMAGE, sensor} <= set(frame.modalities)]
        if IMAGE in source.modalities and sensor in source.modalities and own:
            found.append(_alignment(source, sensor, own, curve, late_s, options))
    return found


def _alignment(
    source: Source,
    sensor: str,
    frames: Sequence[Frame],
    curve: PoseCurve,
    late_s: dict[str, float],
    options: SourceOptions,
) -> Alignment:
    topic = _TOPIC.format(sensor)
    if sensor == DEPTH and isinstance(source, SevenScenesSource) and not options.register_depth:
        text = "depth is not brought into the colour camera's view, which is elsewhere and has another focal length"
        remedy = "--set source.register_depth=true (vmloc extrinsics then estimates source.depth_mount)"
        return Alignment(Finding("note", topic, text, remedy, {}, source.name), sensor)
    delay_s = late_s.get(IMAGE, 0.0) - late_s.get(sensor, 0.0)
    given = (options.colour_from_depth if sensor == DEPTH else None) or Pose.identity()
    first_ns = source.stamps_ns()[0]
    try:
        if any(frame.camera is None for frame in frames):
            raise DataError("the camera's intrinsics are not known")
        edges, presents = [], []
        for frame in frames:
            if sensor == LIDAR and frame.cloud is not None:
                frame = replace(frame, cloud=frame.cloud.delayed(delay_s))
            twist = twist_at(curve, (frame.stamp_ns - first_ns) * 1e-9)
            found, present = edges_of(source, frame, sensor, given, twist)
            edges.append(found)
            presents.append(present)
        correction = estimate_correction(edges)
    except DataError as error:
        text = f"cannot be determined: {error}"
        remedy = f"vmloc extrinsics looks at more frames: vmloc extrinsics DATA --sensor {sensor}"
        return Alignment(Finding("note", topic, text, remedy, {}, source.name), sensor)
    shown = max(range(len(edges)), key=lambda number: len(edges[number].points_m))
    finding = _finding(source, sensor, len(edges), correction, presents[0])
    return Alignment(finding, sensor, frames[shown], edges[shown].points_m, correction)


def _finding(source: Source, sensor: str, count: int, correction: Correction, present: Pose) -> Finding:
    topic = _TOPIC.format(sensor)
    shift = correction.true_from_present.position_m
    turn = rotation_vector_from_quaternion(correction.true_from_present.quaternion_wxyz)
    # What is not significant is not a fault: only significant components count.
    clear = np.abs(np.concatenate([shift, turn])) > SIGNIFICANT * correction.std
    loss = Loss(float(np.linalg.norm(shift[clear[:3]])), float(np.linalg.norm(turn[clear[3:]])))
    std = Loss(float(correction.std[:3].max()), float(correction.std[3:].max()))
    values = {
        "frames": count,
        "shift_m": float(np.linalg.norm(shift)),
        "turn_deg": float(np.degrees(np.linalg.norm(turn))),
        "std_m": std.metres,
        "std_deg": float(np.degrees(std.radians)),
        "score_before": correction.score_before,
        "score_after": correction.score_after,
    }
    level = level_of(loss) if correction.better else "ok"
    if level == "ok":
        precise = f"{std.metres:.3f} m and {np.degrees(std.radians):.2f} deg"
        text = (
            f"edges meet in {count} frames: nothing speaks against the mount, whose estimate has deviations of "
            f"{precise}"
        )
        return Finding("ok", topic, text, "", values, source.name)
    text = (
        f"the {sensor} is {np.linalg.norm(shift):.3f} m and {np.degrees(np.linalg.norm(turn)):.2f} deg (+- "
        f"{std.metres:.3f} m, "
        f"{np.degrees(std.radians):.2f} deg) from where the transforms put it: edges meet with "
        f"{correction.score_after:.2f} "
        f"instead of {correction.score_before:.2f} there"
    )
    remedy = " ".join(line.strip() for line in instructions(source, sensor, correction.true_from_present @ present))
    return Finding(level, topic, text, remedy, values, source.name)


def twist_at(curve: PoseCurve, time_s: float) -> NDArray[np.float64]:
    """Velocity ``(6,)`` of the body at a time, in its own axes; zero where the curve does not reach."""
    p, R, known = curve.at([time_s - _HALF_STEP_S, time_s, time_s + _HALF_STEP_S])
    if not known.all():
        return np.zeros(6)
    q = quaternion_from_matrix(R)
    turn = rotation_vector_from_quaternion(quaternion_multiply(quaternion_conjugate(q[0]), q[2]))
    return np.concatenate([R[1].T @ (p[2] - p[0]), turn]) / (2 * _HALF_STEP_S)
