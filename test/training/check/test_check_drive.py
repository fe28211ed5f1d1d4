# SPDX-License-Identifier: Apache-2.0
"""The whole doctor on simulated driving: quiet where nothing is wrong, and right about what is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import ListSource
from training.check import reading
from training.check.report import report_json, report_text
from training.check.run import Report, run_checks
from training.check.sheet import draw_sheet
from training.simulation import Rates, Traversal
from training.simulation.traversal import BASE_FROM_CAMERA, BASE_FROM_LIDAR
from training.sources.options import SourceOptions
from vmloc_ros.core.frame import Frame, PointCloud, Sample
from vmloc_ros.core.geometry import Pose

MOUNTS = {"image": BASE_FROM_CAMERA, "lidar": BASE_FROM_LIDAR}
TURNED = Pose.from_xyz_rpy([0, 0, 0], np.radians([0.6, -0.6, 0.6]))
IMAGE_LATE_S, LIDAR_LATE_S = 0.03, -0.05


@pytest.fixture(scope="module")
def measured() -> tuple[Traversal, list[tuple[float, np.ndarray, PointCloud]]]:
    """Seven seconds around a corner: pictures, and the scans taken at the same times."""
    drive = Traversal(3, image_size=(200, 150), rates=Rates(), beams=16)
    rng = np.random.default_rng(0)
    times = 4.0 + 0.1 * np.arange(70)
    return drive, [(t, drive.image(t, rng), drive.scan(t, rng)[0]) for t in times.tolist()]


def checked(
    measured: tuple,
    monkeypatch: pytest.MonkeyPatch,
    mounts: dict[str, Pose],
    change: Callable[[float, Frame], Frame],
    pose_at: Callable[[float], Pose] | None = None,
) -> Report:
    """The report on a source whose stamps are ``t``; ``change`` disturbs what was measured then."""
    drive, frames = measured
    camera_from_lidar = mounts["image"].inverse() @ mounts["lidar"]
    samples = [
        Sample(
            change(t, Frame(drive.stamp_ns(t), image, None, cloud, drive.camera.intrinsics, camera_from_lidar)),
            (pose_at or drive.trajectory.pose)(t),
        )
        for t, image, cloud in frames
    ]
    source = ListSource(samples, "drive", mounts=mounts)
    monkeypatch.setattr(reading, "open_with_every_modality", lambda *_: ([source], []))
    return run_checks([Path("drive")], split="all", options=SourceOptions(), frames=60)


@pytest.mark.slow
def test_undisturbed_driving_raises_no_warning_but_that_it_is_seen_once(
    measured: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = checked(measured, monkeypatch, MOUNTS, lambda _, frame: frame)
    assert {finding.topic for finding in report.findings if finding.level in ("warning", "error")} == {"revisits"}
    by_topic = {finding.topic: finding for finding in report.findings}
    for sensor in ("image", "lidar"):
        clock = by_topic[f"clock of {sensor}"]
        assert clock.level == "ok"
        assert abs(clock.values["late_ms"]) < max(4 * clock.values["std_ms"], 3)


def test_faults_that_come_together_are_each_found_with_their_size(
    measured: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poses late for the pictures, scans early, a lidar turned by 1 deg, a jump by 1 m, dark pictures."""
    drive = measured[0]

    def pose_at(time_s: float) -> Pose:
        # A picture of time t is stamped t: it is late by what the poses are early.
        pose = drive.trajectory.pose(time_s + IMAGE_LATE_S)
        return Pose(pose.position_m + np.array([0.6, 0.8, 0.0]) * (time_s > 7.95), pose.quaternion_wxyz)

    def change(_: float, frame: Frame) -> Frame:
        dark = (frame.image * 0.15).astype(np.uint8)
        # As if scanned later than stamped, by the poses: late by 30 ms as the picture, early by 80 against it.
        return replace(frame, image=dark, cloud=frame.cloud.delayed(LIDAR_LATE_S - IMAGE_LATE_S))

    mounts = {**MOUNTS, "lidar": BASE_FROM_LIDAR @ TURNED}
    report = checked(measured, monkeypatch, mounts, change, pose_at)
    by_topic = {finding.topic: finding for finding in report.findings if finding.level in ("warning", "error")}
    assert report.failed
    assert by_topic["clock of image"].values["late_ms"] == pytest.approx(30, abs=6)
    assert by_topic["mount of lidar"].values["turned_deg"] == pytest.approx(1.0, abs=0.2)
    assert by_topic["pose jumps"].values["jump_m"] == pytest.approx(1.0, abs=0.1)
    assert "dark" in by_topic["pictures"].text
    assert by_topic["clock of lidar"].values["late_ms"] == pytest.approx(1e3 * LIDAR_LATE_S, abs=6)
    text = report_text(report)
    assert "ERROR" in text
    assert "What to do:" in text
    assert '"failed": true' in report_json(report)
    assert len(draw_sheet(report).axes) >= 4
