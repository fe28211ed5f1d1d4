# SPDX-License-Identifier: Apache-2.0
"""What reading tells of a recording, and the command line with its exit status and files."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from bag_builders import MS, T0, calibration, clouds, images, poses, source, write_bag
from helpers import ListSource, random_frame, yaw_pose
from training.check.reading import mount_findings, open_recordings, reading_findings, warnings_of_readers
from training.cli import main
from training.sources.base import samples_at
from training.sources.options import MountOptions, SourceOptions
from vmloc_ros.bags.messages import tf_message
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose

OPTIONS = SourceOptions()


def test_what_cannot_be_read_is_an_error_and_what_is_absent_is_none(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", images(), clouds(), poses(), calibration())
    sources, findings = open_recordings([bag, tmp_path / "absent"], "all", OPTIONS)
    assert sources[0].modalities == ("image", "lidar")  # no depth, which is no fault
    [finding] = findings
    assert (finding.level, finding.recording) == ("error", "absent")
    assert "does not exist" in finding.text


def test_an_ambiguous_topic_is_a_warning_that_says_what_to_type(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", images(), images(topic="/other/image_raw"), clouds(), poses(), calibration())
    sources, [finding] = open_recordings([bag], "all", OPTIONS)
    assert sources[0].modalities == ("lidar",)
    assert finding.level == "warning"
    assert "set source.image_topic" in finding.text


def test_doubts_and_losses_are_findings() -> None:
    plain = ListSource([Sample(random_frame(i), yaw_pose(i)) for i in range(10)])
    plain.doubts = ["assumed: something"]
    plain.report = {"frames": 10, "frames in a gap between poses": 5, "10 paired": 10}
    levels = {finding.topic: finding.level for finding in reading_findings(plain)}
    assert levels == {"reading": "warning", "losses": "warning"}
    plain.report["frames in a gap between poses"] = 1
    assert reading_findings(plain)[-1].level == "note"
    plain.report = {"frames": 10}
    assert reading_findings(plain)[-1].level == "ok"


def test_warnings_of_readers_are_collected_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with warnings_of_readers() as found:
        for _ in range(2):
            logging.getLogger("training.sources.test").warning("points' times: left out")
    assert found == ["points' times: left out"]
    assert caplog.records == []


def test_a_missing_transform_is_named_with_what_to_type(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", images(), clouds(), poses())
    opened = source(bag)
    found = [finding for finding in mount_findings(opened, OPTIONS) if "lidar" in finding.remedy]
    assert [finding.level for finding in found] == ["warning"]
    assert "--set source.mounts.lidar=[x,y,z,roll,pitch,yaw]" in found[0].remedy


def turret(edge: tuple[str, str], step_deg: float, topic: str = "/tf") -> list:
    return [
        (topic, tf_message([(*edge, Pose.from_xyz_rpy([0.1, 0, 0.5], [0, 0, np.radians(step_deg * i)]), t)]), t)
        for i in range(10)
        for t in [T0 + i * 100 * MS]
    ]


@pytest.mark.parametrize("topic", ["/tf", "/tf_static"])
def test_a_transform_that_moves_is_named_with_how_far(tmp_path: Path, topic: str) -> None:
    """A turret on /tf, or a mount that was published twice, differently."""
    fixed = [("/tf_static", tf_message([("base_link", "camera_optical_frame", Pose.identity(), T0)]), T0 - 1)]
    moving = turret(("base_link", "turret"), 4.0, topic)
    last = [("/tf_static", tf_message([("turret", "lidar_link", Pose.identity(), T0)]), T0 - 2)]
    bag = write_bag(tmp_path / "bag", images(), clouds(), poses(), fixed, moving, last)
    opened = source(bag, pose_topic="/ground_truth/pose", body_frame="base_link")
    options = replace(OPTIONS, pose_topic="/ground_truth/pose")
    [finding] = mount_findings(opened, options)
    assert finding.level == "warning"
    assert "base_link -> turret changes by up to 0.00 m and 36.0 deg" in finding.text
    given = replace(options, mounts=MountOptions(lidar=(0, 0, 0, 0, 0, 0)))
    assert [f.level for f in mount_findings(opened, given)] == ["ok" if "lidar" in opened.mounts else "warning"]


def test_some_samples_are_read_without_the_others(tmp_path: Path) -> None:
    opened = source(write_bag(tmp_path / "bag", images(), clouds(), poses(), calibration()))
    stamps = opened.stamps_ns()
    found = list(samples_at(opened, {stamps[2], stamps[5]}))
    assert [sample.frame.stamp_ns for sample in found] == [stamps[2], stamps[5]]
    assert found[0].frame.image is not None
    assert found[0].frame.image.max() == 2
    plain = ListSource([Sample(replace(random_frame(i), stamp_ns=i), yaw_pose(i)) for i in range(4)])
    assert [sample.frame.stamp_ns for sample in samples_at(plain, {3, 1})] == [1, 3]


def test_the_exit_status_tells_errors_and_files_hold_the_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag(tmp_path / "bag", images(), clouds(), poses(), calibration())
    report, picture = tmp_path / "check.json", tmp_path / "check.png"
    assert main(["check", str(bag), "--json", str(report), "--out", str(picture)]) == 0
    content = json.loads(report.read_text())
    assert not content["failed"]
    by_topic = {finding["topic"]: finding for finding in content["findings"]}
    assert by_topic["clock of image"]["level"] == "note"  # ten pictures of one colour each
    assert by_topic["pictures"]["level"] == "warning"
    assert cv2.imread(str(picture)).std() > 5
    out = capsys.readouterr().out
    assert "What to do:" in out
    assert main(["check", str(bag), str(tmp_path / "absent"), "--json", str(report)]) == 1
    assert json.loads(report.read_text())["failed"]
    captured = capsys.readouterr()
    assert "vmloc check: 1 error" in captured.err
    assert "ERROR" in captured.out
