# SPDX-License-Identifier: Apache-2.0
"""A picture of what was found: the way and where it is seen once, and a panel for each finding that can be drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.check.alignment import Alignment
from training.check.findings import Finding
from training.check.motions import LAG, Explanation, Motion
from training.check.pose_curve import PoseCurve
from training.check.run import Checked, Report
from vmloc_ros.core.frame import PinholeCamera
from vmloc_ros.core.geometry import Pose

Draw = Callable[[Axes], None]

_ONCE, _AGAIN, _BAD = "tab:orange", "tab:green", "tab:red"
_MOST_PANELS = 12
_WIDTH_IN, _HEIGHT_IN = 5.2, 4.2


def draw_sheet(report: Report) -> Figure:
    """A figure with the way from above, sensors' clocks, and what else was found to be wrong."""
    panels = list(_panels(report))[:_MOST_PANELS]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_WIDTH_IN * columns, _HEIGHT_IN * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, draw in zip(grid, panels, strict=False):
        draw(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def _panels(report: Report) -> Iterator[Draw]:
    yield lambda axes: _draw_way(axes, report)
    serious = [finding for finding in report.findings if finding.level in ("warning", "error")]
    for recording in report.recordings:
        own = [finding for finding in serious if finding.recording == recording.source.name]
        name = f"{recording.source.name}: " if len(report.recordings) > 1 else ""
        late = {finding.topic.removeprefix("clock of ") for finding in own if finding.topic.startswith("clock of ")}
        for sensor in sorted(late):
            if recording.explanations.get(sensor) is not None:
                yield _bound(_draw_rates, recording, sensor, name)
        for alignment in recording.alignments:
            if alignment.finding in own and alignment.correction is not None:
                for corrected in (False, True):
                    yield _bound(_draw_alignment, alignment, corrected, name)
        for finding in own:
            if finding.topic == "pictures" and recording.observed.samples:
                yield _bound(_draw_picture, recording, finding, name)
    if any(found is not None for recording in report.recordings for found in recording.explanations.values()):
        yield lambda axes: _draw_delays(axes, report.recordings)


def _bound(draw: Callable[..., None], *values: object) -> Draw:
    return lambda axes: draw(axes, *values)


def _draw_way(axes: Axes, report: Report) -> None:
    """All poses from the side that shows the most, by whether their place is seen again; jumps."""
    positions = [recording.curve.positions_m for recording in report.recordings]
    across, up = sorted(np.argsort(np.ptp(np.concatenate(positions), axis=0))[-2:])
    for colour, again, label in ((_AGAIN, True, "seen at two times"), (_ONCE, False, "seen once")):
        points = [p[seen == again] for p, seen in zip(positions, report.seen_again, strict=True)]
        joined = np.concatenate(points)
        if len(joined):
            axes.plot(joined[:, across], joined[:, up], ".", ms=3, color=colour, label=label)
    jumps = [finding for finding in report.findings if finding.topic == "pose jumps" and "x_m" in finding.values]
    if jumps:
        place = np.array([[float(finding.values[f"{axis}_m"]) for axis in "xyz"] for finding in jumps])
        axes.plot(place[:, across], place[:, up], "x", ms=12, mew=2, color=_BAD, label="poses jump")
    axes.set(xlabel=f"{'xyz'[across]} (m)", ylabel=f"{'xyz'[up]} (m)", aspect="equal", title="poses")
    axes.legend(fontsize="small")


def _draw_rates(axes: Axes, recording: Checked, sensor: str, name: str) -> None:
    """Rate of rotation that a sensor measured, beside that of the poses, where it varies the most."""
    found = recording.explanations[sensor]
    assert found is not None
    own = _most_varied(recording.observed.motions[sensor])
    times = np.array([(m.first_s + m.second_s) / 2 for m in own])
    steps = np.array([m.second_s - m.first_s for m in own])
    measured = np.degrees(np.linalg.norm([m.turn_rad for m in own], axis=1) / steps)
    fine = np.linspace(times[0] - 0.1, times[-1] + 0.1, 200)
    axes.plot(fine, _pose_rates(recording.smooth, fine), "-", color="k", label="poses")
    axes.plot(times, measured, "o-", ms=4, color=_BAD, label=f"{sensor}, by its stamps")
    lag_s = float(found.values[LAG])
    axes.plot(times + lag_s, measured, "o:", ms=4, color=_AGAIN, label=f"{sensor}, {1e3 * lag_s:+.0f} ms")
    axes.set(xlabel="seconds", ylabel="rotation (deg/s)", title=f"{name}clock of {sensor}")
    axes.legend(fontsize="small")


def _most_varied(motions: Sequence[Motion]) -> list[Motion]:
    """Motions of the stretch in which the rotation varies the most."""
    by_stretch: dict[int, list[Motion]] = {}
    for motion in motions:
        by_stretch.setdefault(motion.stretch, []).append(motion)
    return max(by_stretch.values(), key=lambda own: float(np.std([m.turn_rad for m in own], axis=0).max()))


def _pose_rates(curve: PoseCurve, times_s: np.ndarray) -> np.ndarray:
    half = 0.05
    _, before, known = curve.at(times_s - half)
    _, after, there = curve.at(times_s + half)
    cosine = (np.einsum("nij,nij->n", before, after) - 1) / 2
    rates = np.degrees(np.arccos(cosine.clip(-1, 1))) / (2 * half)
    return np.where(known & there, rates, np.nan)


def _draw_delays(axes: Axes, recordings: Sequence[Checked]) -> None:
    """What poses leave unexplained of each sensor's motion, by the delay between them."""
    for recording in recordings:
        for sensor, found in recording.explanations.items():
            if found is not None:
                axes.plot(
                    1e3 * found.lags_s,
                    100 * found.costs,
                    ".-",
                    ms=3,
                    label=_delay_label(recording, sensor, found, recordings),
                )
    axes.axvline(0, color="0.7", lw=1, zorder=0)
    axes.set(xlabel="delay between sensor and poses (ms)", ylabel="motion unexplained by poses (%)", title="clocks")
    if len(recordings) <= 4:
        axes.legend(fontsize="small")


def _delay_label(recording: Checked, sensor: str, found: Explanation, recordings: Sequence[Checked]) -> str:
    name = f"{recording.source.name}, " if len(recordings) > 1 else ""
    return f"{name}{sensor}: {1e3 * found.values[LAG]:+.1f} +- {1e3 * found.std[LAG]:.1f} ms"


def _draw_picture(axes: Axes, recording: Checked, finding: Finding, name: str) -> None:
    """The worst of the pictures kept."""
    looks = {look.stamp_ns: look for look in recording.observed.looks}
    worst = next((name for name in ("dark", "blurred", "overexposed", "without contrast") if name in finding.text), "")

    def badness(stamp: int) -> float:
        look = looks.get(stamp)
        if look is None:
            return -np.inf
        return {"dark": -look.light_level, "blurred": look.blur_px, "overexposed": look.saturated}.get(worst, 0.0)

    stamp = max(recording.observed.samples, key=badness)
    axes.imshow(recording.observed.samples[stamp])
    axes.set_axis_off()
    seconds = (stamp - recording.source.stamps_ns()[0]) * 1e-9
    axes.set_title(f"{name}{worst} picture, {seconds:.1f} s")


def _draw_alignment(axes: Axes, alignment: Alignment, corrected: bool, name: str) -> None:
    """Edges of lidar or depth on the picture, where the transforms or the estimate put them."""
    frame, edges, correction = alignment.frame, alignment.edges_m, alignment.correction
    assert frame is not None and frame.image is not None and frame.camera is not None  # noqa: PT018
    assert edges is not None and correction is not None  # noqa: PT018
    points = (correction.true_from_present if corrected else Pose.identity()).transform(edges)
    u, v = _seen(points, frame.camera)
    axes.imshow(frame.image, alpha=0.7)
    axes.plot(u, v, ".", ms=2, color=_AGAIN if corrected else _BAD)
    axes.set(xlim=(-0.5, frame.camera.width - 0.5), ylim=(frame.camera.height - 0.5, -0.5))
    axes.set_axis_off()
    axes.set_title(f"{name}edges of {alignment.sensor} {'as estimated' if corrected else 'by the transforms'}")


def _seen(points_m: np.ndarray, camera: PinholeCamera) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = points_m[points_m[:, 2] > 0.1].T
    u, v = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
    inside = (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
    return u[inside], v[inside]
