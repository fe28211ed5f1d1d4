# SPDX-License-Identifier: Apache-2.0
"""The frame of published poses."""

from __future__ import annotations

import numpy as np
import pytest

from vmloc_ros.core.geometry import Pose
from vmloc_ros.runtime.map_frame import choose_map_frame

UTM_M = (619_994.3, 5_734_999.8, 109.6)


@pytest.mark.parametrize("centre_m", [(0.0, 0.0, 0.0), (9_999.0, -9_999.0, 0.0)])
@pytest.mark.parametrize(("name", "expected"), [("", "lab"), ("world", "world")])
def test_small_coordinates_stay_as_they_are(centre_m, name, expected):
    frame = choose_map_frame("lab", centre_m, name)
    assert (frame.name, frame.parent, frame.origin_m.tolist()) == (expected, None, [0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("checkpoint_frame", "name", "expected"),
    [
        ("utm", "", ("map", "utm")),
        ("utm", "site", ("site", "utm")),
        ("map", "", ("map", "checkpoint_map")),  # frame names must differ
        ("utm", "utm", ("utm", "checkpoint_map")),
    ],
)
def test_large_coordinates_get_a_local_map_in_whole_metres(checkpoint_frame, name, expected):
    frame = choose_map_frame(checkpoint_frame, UTM_M, name)
    assert (frame.name, frame.parent) == expected
    assert frame.origin_m.tolist() == [619_994.0, 5_735_000.0, 110.0]


def test_a_given_origin_replaces_the_automatic_one():
    assert choose_map_frame("utm", UTM_M, origin_m=(600_000.0, 5_700_000.0, 0.0)).origin_m[0] == 600_000.0
    assert choose_map_frame("utm", UTM_M, origin_m=(0.0, 0.0, 0.0)).name == "utm"
    assert choose_map_frame("map", (1.0, 2.0, 3.0), "hall", (1.0, 0.0, 0.0)).parent == "map"


def test_origin_and_local_pose_compose_to_the_pose_in_the_checkpoints_frame():
    utm_from_base = Pose.from_xyz_rpy(np.add(UTM_M, [30.25, -7.5, 0.125]), [0.1, -0.2, 2.0])
    frame = choose_map_frame("utm", UTM_M)
    local = frame.from_checkpoint(utm_from_base)
    assert np.abs(local.position_m).max() < 100
    origin = np.eye(4)
    origin[:3, 3] = frame.origin_m
    np.testing.assert_allclose(origin @ local.matrix, utm_from_base.matrix, rtol=0, atol=1e-8)
