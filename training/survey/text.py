# SPDX-License-Identifier: Apache-2.0
"""A survey as lines to print."""

from __future__ import annotations

from training.survey.facts import LidarModel, Survey
from training.survey.survey import has_known_camera


def describe(found: Survey) -> list[str]:
    """A line for each kind of fact."""
    path, count = found.path, len(found.recordings)
    seconds = sum(recording.duration_s for recording in found.recordings)
    kinds = ", ".join(sorted({recording.kind for recording in found.recordings}))
    extent = " x ".join(f"{side:.1f}" for side in path.extent_m)
    lines = [
        f"recordings: {count} ({kinds}), {found.frames} frames with a pose, {seconds:.0f} s, {path.rate_hz:.3g} frames "
        f"per second; {found.complete_share:.0%} of sampled frames have every sensor",
        f"poses: {found.map_frame} -> {found.body_frame}, {path.driven_m:.1f} m driven over {path.road_m:.0f} m of "
        f"road, extent {extent} m; {path.revisited:.0%} of the views were recorded more than once",
    ]
    if camera := found.camera:
        lens = f"lens {camera.distortion}, undistorted" if camera.distortion else "no distortion"
        known = lens if camera.is_calibrated else "NOT calibrated (no usable camera info)"
        lines.append(
            f"camera: {camera.size[0]} x {camera.size[1]}, {known}; mean brightness {camera.brightness:.2f}, "
            f"{camera.dark_share:.0%} of sampled pictures are dark"
        )
    if depth := found.depth:
        known = "" if has_known_camera(found) else "; camera NOT known"
        lines.append(
            f"depth: {depth.size[0]} x {depth.size[1]}, {depth.measured_share:.0%} of pixels measured, median "
            f"{depth.median_m:.1f} m, 99 % within {depth.far_m:.1f} m{known}"
        )
    if found.lidar:
        lines.append(_lidar_line(found.lidar))
    unknown = [name for name in found.modalities if name not in found.mounted]
    lines.append(
        "transforms: where every sensor is mounted is known"
        if not unknown
        else f"transforms: where the sensor of {' and '.join(unknown)} is mounted on {found.body_frame} is NOT known"
    )
    return [*lines, *(f"left out: {text}" for text in found.left_out)]


def _lidar_line(lidar: LidarModel) -> str:
    rings = f"{lidar.rings} rings" if lidar.rings else "no separate rings"
    times = f"points' times span {1000 * lidar.sweep_s:.0f} ms" if lidar.sweep_s else "points have no times"
    (low, high), (left, right) = lidar.elevation_deg, lidar.azimuth_deg
    return (
        f"lidar: {rings} from {low:.1f} to {high:.1f} deg, azimuth {left:.0f} to {right:.0f} deg, {lidar.points} "
        f"returns a scan, median range {lidar.median_m:.1f} m, 99.5 % within {lidar.far_m:.1f} m; {times}"
    )
