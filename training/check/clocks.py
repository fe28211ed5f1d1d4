# SPDX-License-Identifier: Apache-2.0
"""What sensors say about clocks, mounts and poses by their motion, as findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.check.findings import HARMFUL, NOTICEABLE, SIGNIFICANT, Finding, Loss, level_of
from training.check.motions import ANGLES, LAG, LONGEST_LAG_S, METRES, TURN, Explanation
from training.check.pose_curve import PoseCurve
from vmloc_ros.core.frame import DEPTH, IMAGE

Array = NDArray[np.float64]

_UNEXPLAINED = 0.5  # of a sensor's motion: with less the poses are not of this robot, or not in these axes
_MOVING = 5.0  # standard deviations of a measurement: less is hardly a motion
_QUICK = 90  # percentile of speeds by which losses are judged
_DRIVING = "record more metres of driving, at places with walls or things in all directions"
_TURNING = "record some seconds in which the robot turns quickly to the left and to the right, then check again"


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a body moves when it is fast.

    Attributes:
        metres_s: 90th percentile of its speeds.
        radians_s: 90th percentile of its rates of rotation.
    """

    metres_s: float
    radians_s: float

    @staticmethod
    def of(curve: PoseCurve) -> Pace:
        speeds, rates = (x[np.isfinite(x)] for x in curve.speeds())
        if not len(speeds):
            return Pace(0.0, 0.0)
        return Pace(float(np.percentile(speeds, _QUICK)), float(np.percentile(rates, _QUICK)))

    def loss(self, seconds: float) -> Loss:
        """What so late a stamp costs."""
        return Loss(self.metres_s * abs(seconds), self.radians_s * abs(seconds))


def _word(sensor: str) -> str:
    """What the sensor of a modality is called."""
    return {IMAGE: "camera", DEPTH: "depth camera"}.get(sensor, sensor)


def clock_findings(found: Mapping[str, Explanation | None], pace: Pace, recording: str) -> list[Finding]:
    """Sensors' clocks against that of the poses, and against each other.

    Args:
        found: by sensor; None where it moved too little, or too little was measured.
    """
    findings = [_clock_finding(sensor, known, pace, recording) for sensor, known in found.items()]
    known = {
        sensor: e
        for sensor, e in found.items()
        if e is not None and e.explained > _UNEXPLAINED and _determined(e, pace)
    }
    sensors = list(known)
    for number, first in enumerate(sensors):
        for second in sensors[number + 1 :]:
            a, b = known[first], known[second]
            apart = float(a.values[LAG] - b.values[LAG])
            std = float(np.hypot(a.std[LAG], b.std[LAG]))
            findings.append(_pair_finding(first, second, apart, std, pace, recording))
    return findings


def _determined(found: Explanation, pace: Pace) -> bool:
    return SIGNIFICANT * found.std[LAG] < LONGEST_LAG_S / 4 and not pace.loss(SIGNIFICANT * found.std[LAG]).exceeds(
        HARMFUL
    )


def _clock_finding(sensor: str, found: Explanation | None, pace: Pace, recording: str) -> Finding:
    topic = f"clock of {sensor}"
    if found is None:
        text = f"cannot be determined: too few motions of the {_word(sensor)} were measured"
        return Finding("note", topic, text, _TURNING, {}, recording)
    lag_ms, std_ms = 1e3 * float(found.values[LAG]), 1e3 * float(found.std[LAG])
    values = {"late_ms": -lag_ms, "std_ms": std_ms, "explained": found.explained}
    if found.explained < _UNEXPLAINED and found.motion > _MOVING:
        text = (
            f"the {_word(sensor)} moves otherwise than the poses say: at the best of all delays up to "
            f"{LONGEST_LAG_S:g} s they "
            f"explain {max(found.explained, 0):.0%} of its motion"
        )
        remedy = (
            "check that the poses are those of this robot (source.pose_topic), that its clock is the sensors', "
            "and the axes "
            "of the sensor's frame (a camera's: x right, y down, z forward)"
        )
        return Finding(
            "error" if found.explained < _UNEXPLAINED / 2 else "warning", topic, text, remedy, values, recording
        )
    if found.explained < _UNEXPLAINED or not _determined(found, pace):
        text = (
            f"cannot be determined: the motion leaves +- {std_ms:.0f} ms open, as the robot hardly speeds up or turns"
        )
        return Finding("note", topic, text, _TURNING, values, recording)
    loss = pace.loss(lag_ms * 1e-3)
    what = f"{abs(lag_ms):.1f} +- {std_ms:.1f} ms {'late' if lag_ms < 0 else 'early'} against the poses"
    level = level_of(loss) if abs(lag_ms) > SIGNIFICANT * std_ms else "ok"
    if level == "ok":
        return Finding("ok", topic, f"stamps are {what}, which costs nothing", "", values, recording)
    text = (
        f"its stamps are {what}: at this drive's {pace.metres_s:.1f} m/s and {np.degrees(pace.radians_s):.0f} deg/s "
        f"that is {loss}"
    )
    return Finding(level, topic, text, _clock_remedy(sensor, lag_ms), values, recording)


def _clock_remedy(sensor: str, lag_ms: float) -> str:
    sense = "earlier" if lag_ms < 0 else "later"
    return (
        f"let the {_word(sensor)}'s driver stamp {abs(lag_ms):.0f} ms {sense} (its time offset; stamp the middle "
        "of the exposure or "
        "sweep, not the arrival), or synchronize the clocks (PTP, chrony); if all sensors are off alike, the "
        "poses' stamps are"
    )


def _pair_finding(first: str, second: str, apart_s: float, std_s: float, pace: Pace, recording: str) -> Finding:
    topic = f"clocks of {first} and {second}"
    values = {"apart_ms": 1e3 * apart_s, "std_ms": 1e3 * std_s}
    loss = pace.loss(apart_s)
    level = level_of(loss) if abs(apart_s) > SIGNIFICANT * std_s else "ok"
    text = f"{1e3 * abs(apart_s):.1f} +- {1e3 * std_s:.1f} ms apart"
    if level == "ok":
        return Finding("ok", topic, text, "", values, recording)
    late, other = (first, second) if apart_s < 0 else (second, first)
    text = (
        f"stamps of the {late} are {1e3 * abs(apart_s):.0f} +- {1e3 * std_s:.0f} ms later than those of the {other}: "
        f"{loss}"
    )
    remedy = "what one sees is not where the other sees it: correct the clock that is off against the poses, too"
    return Finding(level, topic, text, remedy, values, recording)


def mount_by_motion_findings(
    found: Mapping[str, Explanation | None], tangent: float | None, recording: str
) -> list[Finding]:
    """Rotations of mounts, and the camera's focal length, by motion.

    Args:
        tangent: of the angle from the picture's middle to its corner; None without a camera.
    """
    findings: list[Finding] = []
    for sensor, known in found.items():
        if known is None or known.explained < _UNEXPLAINED:
            continue
        findings.append(_mount_finding(sensor, known, recording))
        if sensor == IMAGE and tangent is not None:
            findings.append(_focal_finding(known, tangent, recording))
    return findings


def pose_findings(
    steps: Mapping[str, Explanation | None],
    strides: Mapping[str, Explanation | None],
    ranges_m: float | None,
    recording: str,
) -> list[Finding]:
    """Noise and scale of the poses, by what ranging sensors measured.

    Args:
        steps: by sensor, of its motions from scan to scan, in which noise shows.
        strides: of those over half a second and more, in which scale shows: from scan to scan noise would pass for it.
        ranges_m: typical distance of what is seen.
    """
    findings: list[Finding] = []
    for sensor, known in strides.items():
        if known is not None and known.explained > _UNEXPLAINED and ranges_m is not None:
            findings.append(_scale_finding(sensor, known, ranges_m, recording))
    for sensor, known in steps.items():
        if sensor != IMAGE and known is not None and known.explained > _UNEXPLAINED:
            findings.append(_noise_finding(sensor, known, recording))
    return findings


def _mount_finding(sensor: str, found: Explanation, recording: str) -> Finding:
    """The rotation between sensor and body, as far as the motion shows it."""
    topic = f"mount of {sensor}"
    covariance, turn = found.covariance[TURN, TURN], found.values[TURN]
    variances, axes = np.linalg.eigh(covariance)
    stds = np.sqrt(variances)
    shown = stds < NOTICEABLE.radians  # directions in which the motion shows the rotation
    if not shown.any():
        text = (
            f"its rotation on the body cannot be determined from the motion, which leaves {np.degrees(stds[0]):.1f} "
            "deg open"
        )
        return Finding("note", topic, text, _TURNING, {"std_deg": float(np.degrees(stds[0]))}, recording)
    parts = axes.T @ turn
    significant = shown & (np.abs(parts) > SIGNIFICANT * stds)
    angle = float(np.linalg.norm(parts[significant]))
    std = float(stds[significant].max()) if significant.any() else float(stds[shown].max())
    values = {"turned_deg": float(np.degrees(angle)), "std_deg": float(np.degrees(std)), "axes_seen": int(shown.sum())}
    values |= {f"turn_{axis}_deg": float(np.degrees(x)) for axis, x in zip("xyz", turn, strict=True)}
    level = level_of(Loss(0.0, angle))
    seen = "" if shown.all() else f" (as far as the motion shows it: {int(shown.sum())} of 3 axes)"
    if level == "ok":
        text = f"its rotation on the body agrees with the motion within {np.degrees(max(angle, std)):.2f} deg{seen}"
        return Finding("ok", topic, text, "", values, recording)
    x, y, z = np.degrees(axes[:, significant] @ parts[significant])
    text = (
        f"the {_word(sensor)} is turned by {np.degrees(angle):.2f} +- {np.degrees(std):.2f} deg from where its "
        "transform says, about its "
        f"own x, y, z by {x:+.2f}, {y:+.2f}, {z:+.2f} deg{seen}"
    )
    remedy = (
        f"calibrate the {_word(sensor)}'s rotation on the body, and correct what leads there on /tf_static, or "
        f"source.mounts.{sensor}"
    )
    return Finding(level, topic, text, remedy, values, recording)


def _focal_finding(found: Explanation, tangent: float, recording: str) -> Finding:
    ratio, std = float(found.values[ANGLES]), float(found.std[ANGLES])
    values = {"ratio": ratio, "std": std}
    loss = Loss(0.0, abs(ratio - 1) * tangent)
    level = level_of(loss) if abs(ratio - 1) > SIGNIFICANT * std else "ok"
    if level == "ok":
        if std * tangent > NOTICEABLE.radians:
            text = f"cannot be determined from the motion: +- {std:.1%} are left open"
            return Finding("note", "focal length", text, _TURNING, values, recording)
        text = f"fits the motion within {max(abs(ratio - 1), std):.1%}"
        return Finding("ok", "focal length", text, "", values, recording)
    text = (
        f"pictures turn {ratio:.3f} +- {std:.3f} times as far as the poses: the focal length is {ratio:.3f} "
        "times the true one, "
        "or the calibration is another picture's"
    )
    remedy = "calibrate the camera (camera_calibration's cameracalibrator) in the video mode that is recorded"
    return Finding(level, "focal length", text, remedy, values, recording)


def _scale_finding(sensor: str, found: Explanation, ranges_m: float, recording: str) -> Finding:
    topic = f"scale of poses by {sensor}"
    ratio, std = float(found.values[METRES]), float(found.std[METRES])
    values = {"ratio": ratio, "std": std, "range_m": ranges_m}
    loss = Loss(abs(ratio - 1) * ranges_m, 0.0)
    level = level_of(loss) if abs(ratio - 1) > SIGNIFICANT * std else "ok"
    if level != "ok":
        text = (
            f"the {sensor} moves {ratio:.3f} +- {std:.3f} times as far as the poses say: over its typical "
            f"{ranges_m:.1f} m that "
            f"is {loss.metres:.2f} m"
        )
        remedy = "calibrate what gives the poses (wheel radius, stereo baseline, scale of visual SLAM)"
        if sensor == DEPTH:
            remedy += ", or set the depth's unit: --set source.depth_unit_m=METRES"
        return Finding(level, topic, text, remedy, values, recording)
    if std * ranges_m > NOTICEABLE.metres:
        text = f"cannot be determined: the motion leaves +- {std:.1%} open"
        return Finding("note", topic, text, _DRIVING, values, recording)
    text = f"the {sensor}'s and the poses' metres agree within {max(abs(ratio - 1), std):.2%}"
    return Finding("ok", topic, text, "", values, recording)


def _noise_finding(sensor: str, found: Explanation, recording: str) -> Finding:
    apart = found.typical_error
    values = {"median_m": apart.metres, "median_deg": float(np.degrees(apart.radians))}
    text = (
        f"from scan to scan poses and {sensor} differ by {1e3 * apart.metres:.0f} mm and "
        f"{np.degrees(apart.radians):.2f} deg (median)"
    )
    level = level_of(apart)
    remedy = (
        ""
        if level == "ok"
        else "the poses are that noisy: smooth them (a batch optimization of SLAM), or take better ones"
    )
    return Finding(level, f"poses against {sensor}", text, remedy, values, recording)
