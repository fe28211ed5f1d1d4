# SPDX-License-Identifier: Apache-2.0
"""The job behind ``vmloc check``: all checks of some recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.check.alignment import Alignment, alignments
from training.check.clocks import Pace, clock_findings, mount_by_motion_findings, pose_findings
from training.check.findings import LEVELS, SIGNIFICANT, Finding, Loss
from training.check.jumps import Suspect, jump_findings, suspects, without_jumps
from training.check.motions import LAG, Explanation, explain
from training.check.observing import Observed, observe
from training.check.pictures import picture_findings
from training.check.pose_curve import PoseCurve
from training.check.reading import mount_findings, open_recordings, reading_findings, warnings_of_readers
from training.check.revisits import PAIRS, agreement_finding, coverage_finding, reach_of, spread
from training.check.sampling import Places, Stretch, stretches_of
from training.sources.base import Source
from training.sources.options import SourceOptions
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.progress import progress_bar

_FEWEST_FRAMES = 48  # of a recording, however many there are
_BIAS_PX = 0.05  # of tracked corners: what moves by itself, and edges that hide what is behind them
_MOST_PLACES = 20_000  # poses that are compared with each other


@dataclass(slots=True, eq=False)
class Checked:
    """A recording and what was seen in it.

    Attributes:
        source: the recording.
        curve: its poses, as recorded.
        smooth: its poses without suspected jumps.
        jumps: the suspects.
        observed: what the sensors measured.
        explanations: by sensor, what explains its motions.
        strides: by ranging sensor, what explains those over longer times.
        alignments: of ranging sensors with the camera.
    """

    source: Source
    curve: PoseCurve
    smooth: PoseCurve
    jumps: list[Suspect]
    stretches: list[Stretch]
    observed: Observed = field(default_factory=Observed)
    explanations: dict[str, Explanation | None] = field(default_factory=dict)
    strides: dict[str, Explanation | None] = field(default_factory=dict)
    alignments: list[Alignment] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """All findings, and what is needed to draw them.

    Attributes:
        findings: the most serious first.
        recordings: that could be read.
        seen_again: by recording, ``(N,)`` bool for each frame.
    """

    findings: list[Finding]
    recordings: list[Checked]
    seen_again: list[NDArray[np.bool_]]

    @property
    def failed(self) -> bool:
        """Whether an error was found."""
        return any(finding.level == "error" for finding in self.findings)


def run_checks(data: Sequence[Path], *, split: str, options: SourceOptions, frames: int) -> Report:
    """Check recordings of one place and robot.

    Args:
        frames: about how many to look at, in all recordings together.
    """
    with warnings_of_readers() as warnings:
        sources, findings = open_recordings(data, split, options)
        recordings = [_prepared(source, frames, len(sources)) for source in sources]
        again = _check(recordings, findings, options)
    findings += [Finding("warning", "reading", text) for text in warnings]
    order = {level: number for number, level in enumerate(reversed(LEVELS))}
    return Report(sorted(findings, key=lambda f: order[f.level]), recordings, again)


def _prepared(source: Source, frames: int, recordings: int) -> Checked:
    poses, stamps = source.poses(), np.array(source.stamps_ns(), np.int64)
    times_s = (stamps - stamps[0]) * 1e-9
    curve = PoseCurve(times_s, poses)
    jumps = suspects(curve)
    smooth = PoseCurve(times_s, without_jumps(poses, jumps)) if jumps else curve
    return Checked(source, curve, smooth, jumps, stretches_of(smooth, max(_FEWEST_FRAMES, frames // recordings)))


def _check(recordings: Sequence[Checked], findings: list[Finding], options: SourceOptions) -> list[NDArray[np.bool_]]:
    if not recordings:
        return []
    places = Places.of([recording.curve for recording in recordings]).thinned(_MOST_PLACES)
    any_heading = all({IMAGE, DEPTH}.isdisjoint(recording.source.modalities) for recording in recordings)
    pairs = spread(list(places.seen_again(reach_of(None), any_heading)), PAIRS)
    with progress_bar(len(recordings), "checking", "recordings") as bar:
        for number, recording in enumerate(recordings):
            rows = [int(places.rows[p]) for pair in pairs for p in pair if places.recordings[p] == number]
            _observe(recording, rows)
            findings += _findings_of(recording, options)
            bar.update(1)
    ranges = [r for recording in recordings for r in recording.observed.ranges_m]
    reach_m = reach_of(float(np.median(ranges)) if ranges else None)
    again = np.zeros(len(places.rows), bool)
    again[[i for i, _, _ in places.seen_again(reach_m, any_heading)]] = True
    findings.append(coverage_finding(places, again, [recording.source.name for recording in recordings], reach_m))
    agreement = agreement_finding(
        pairs,
        places,
        [recording.observed.scans for recording in recordings],
        [recording.curve for recording in recordings],
        [recording.source.mounts.get(_ranging(recording.source) or "", Pose.identity()) for recording in recordings],
        float(np.median([share for recording in recordings for share in recording.observed.shares] or [0.0])),
        _usual_difference(recordings),
    )
    if agreement is not None:
        findings.append(agreement)
    return [places.spread_out(again, number, len(r.curve.times_s)) for number, r in enumerate(recordings)]


def _usual_difference(recordings: Sequence[Checked]) -> Loss:
    """By how much poses and scans differ over short times, where poses hardly drift: what registration errs by."""
    found = [e.typical_error for r in recordings for e in r.strides.values() if e is not None]
    return Loss(max((e.metres for e in found), default=0.0), max((e.radians for e in found), default=0.0))


def _ranging(source: Source) -> str | None:
    """The sensor whose scans of places are kept."""
    return next((name for name in (LIDAR, DEPTH) if name in source.modalities), None)


def _observe(recording: Checked, rows: Sequence[int]) -> None:
    jump_rows = [jump.rows for jump in recording.jumps]
    recording.observed = observed = observe(recording.source, recording.smooth, recording.stretches, jump_rows, rows)
    for sensor in recording.source.modalities:
        mount = recording.source.mounts.get(sensor)
        motions = observed.motions.get(sensor, [])
        recording.explanations[sensor] = explain(
            motions, recording.smooth, mount, sensor != IMAGE, _BIAS_PX * observed.pixel_rad if sensor == IMAGE else 0.0
        )
        if sensor != IMAGE and mount is not None:
            recording.strides[sensor] = explain(observed.strides.get(sensor, []), recording.smooth, mount, True)


def _findings_of(recording: Checked, options: SourceOptions) -> list[Finding]:
    source, observed = recording.source, recording.observed
    findings = reading_findings(source) + mount_findings(source, options)
    if observed.problem:
        findings.append(Finding("error", "reading", observed.problem, "", {}, source.name))
    if observed.without_camera:
        text = "the camera's intrinsics are not known: neither its clock nor its mount can be checked"
        remedy = "record its camera_info, calibrated (camera_calibration's cameracalibrator)"
        findings.append(Finding("warning", "camera info", text, remedy, {}, source.name))
    pace = Pace.of(recording.smooth)
    findings += clock_findings(recording.explanations, pace, source.name)
    findings += mount_by_motion_findings(recording.explanations, observed.corner_tangent, source.name)
    findings += pose_findings(recording.explanations, recording.strides, observed.typical_range_m, source.name)
    findings += jump_findings(recording.jumps, observed.probes, len(recording.stretches), source, late_s(recording))
    findings += picture_findings(observed.looks, source.name)
    recording.alignments = alignments(source, observed.frames, recording.smooth, late_s(recording), options)
    return findings + [alignment.finding for alignment in recording.alignments]


def late_s(recording: Checked) -> dict[str, float]:
    """By sensor, by how much its stamps are late, as far as that is significant."""
    return {
        sensor: -float(found.values[LAG])
        for sensor, found in recording.explanations.items()
        if found is not None and abs(found.values[LAG]) > SIGNIFICANT * found.std[LAG]
    }
