# SPDX-License-Identifier: Apache-2.0
"""Extrinsics from parameters or TF, compared with those of training."""

from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from vmloc_ros.core.errors import CheckpointError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.runtime.extrinsics import Extrinsics, trained_extrinsics

BASE_FROM_CAMERA = Pose.from_xyz_rpy([0.3, 0.0, 1.2], [-1.5, 0.0, -1.5])
CAMERA_FROM_LIDAR = Pose.from_xyz_rpy([0.1, -0.2, 0.05], [1.5, -1.5, 0.1])


def test_parameters_come_before_tf_and_equal_frames_need_neither():
    lookup = MagicMock()
    extrinsics = Extrinsics(lookup, BASE_FROM_CAMERA, None)
    assert extrinsics.base_from_body("base_link", "camera") is BASE_FROM_CAMERA
    np.testing.assert_array_equal(extrinsics.base_from_body("camera", "camera").matrix, np.eye(4))
    lookup.find.assert_not_called()
    assert extrinsics.camera_from_lidar("camera", "lidar") is lookup.find.return_value
    lookup.find.assert_called_once_with("camera", "lidar")


def moved(pose: Pose, metres: float, degrees: float) -> Pose:
    return pose @ Pose.from_xyz_rpy([0.0, metres, 0.0], np.radians([0.0, 0.0, degrees]))


def recorded(**poses: Pose) -> dict:
    return {
        "extrinsics": {
            name: {"position_m": pose.position_m.tolist(), "quaternion_wxyz": pose.quaternion_wxyz.tolist()}
            for name, pose in poses.items()
        }
    }


@pytest.mark.parametrize(
    ("metres", "degrees", "differs"),
    [(0.0, 0.0, False), (0.04, 1.9, False), (0.06, 0.0, True), (0.0, 2.1, True), (1.2, 90.0, True)],
)
def test_extrinsics_from_tf_that_differ_from_training_are_reported_once(metres, degrees, differs):
    trained = trained_extrinsics(recorded(camera_from_lidar=CAMERA_FROM_LIDAR))
    lookup, warn = MagicMock(problem=None), MagicMock()
    lookup.find.return_value = moved(CAMERA_FROM_LIDAR, metres, degrees)
    extrinsics = Extrinsics(lookup, None, None, trained, warn)
    warn.assert_not_called()  # TF is not known at configure
    for _ in range(3):
        extrinsics.camera_from_lidar("camera", "lidar")
        extrinsics.base_from_body("base_link", "camera")  # not stored in the checkpoint
    assert warn.call_count == len(extrinsics.problems) == int(differs)
    if differs:
        assert f"camera_from_lidar differs by {metres:.2f} m and {degrees:.1f} deg" in warn.call_args.args[0]
    lookup.find.return_value = CAMERA_FROM_LIDAR  # TF is corrected
    extrinsics.camera_from_lidar("camera", "lidar")
    assert not extrinsics.problems


def test_extrinsics_given_by_parameter_are_compared_at_once():
    trained = trained_extrinsics(recorded(base_from_body=BASE_FROM_CAMERA))
    warn = MagicMock()
    extrinsics = Extrinsics(MagicMock(), moved(BASE_FROM_CAMERA, 0.5, 0.0), CAMERA_FROM_LIDAR, trained, warn)
    warn.assert_called_once()
    assert "base_from_body differs by 0.50 m and 0.0 deg" in extrinsics.problems[0]


def test_without_extrinsics_in_the_checkpoint_nothing_is_compared():
    warn = MagicMock()
    assert not Extrinsics(MagicMock(problem=None), BASE_FROM_CAMERA, None, trained_extrinsics({}), warn).problems
    warn.assert_not_called()


@pytest.mark.parametrize("record", [["a list"], {"camera_from_lidar": {"position_m": [1, 2, 3]}}, {"x": None}])
def test_a_malformed_record_of_extrinsics_is_an_error(record):
    with pytest.raises(CheckpointError, match="record of extrinsics is malformed"):
        trained_extrinsics({"extrinsics": record})


def test_frames_that_differ_by_a_slash_are_one():
    lookup = MagicMock(problem=None)
    np.testing.assert_allclose(
        Extrinsics(lookup, None, None).base_from_body("base_link", "/base_link").matrix, np.eye(4)
    )
    lookup.find.assert_not_called()


def test_publishers_of_tf_that_cannot_be_heard_are_a_problem():
    lookup = MagicMock(problem="/tf_static: publisher relay offers volatile durability", hint="; and why")
    extrinsics = Extrinsics(lookup, None, None)
    assert (extrinsics.problems, extrinsics.hint) == ([lookup.problem], "; and why")
