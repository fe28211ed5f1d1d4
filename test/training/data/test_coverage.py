# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from helpers import ListSource, random_frame, yaw_pose
from training.data.coverage import known_views, nearest_training_poses, pose_record, warn_of_unknown_places
from training.trainer.record import data_record
from vmloc_ros.core.errors import CheckpointError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.training_area import TrainingArea
from vmloc_ros.runtime.extrinsics import trained_extrinsics


def test_the_nearest_poses_are_those_of_a_search_tree_also_in_utm_coordinates() -> None:
    rng = np.random.default_rng(0)
    train = [yaw_pose(620_000 + x, 5_735_000 + y, a) for x, y, a in rng.uniform(0, 50, (300, 3))]
    held_out = [yaw_pose(620_000 + x, 5_735_000 + y, a) for x, y, a in rng.uniform(0, 50, (40, 3))]
    positions = np.stack([pose.position_m for pose in train]), np.stack([pose.position_m for pose in held_out])
    found = cKDTree(positions[0][:200]).query(positions[1][:15]), cKDTree(positions[0]).query(positions[1][15:])
    distance, rows = (np.concatenate(x) for x in zip(*found, strict=True))
    angles = [
        np.degrees(np.arccos(np.clip((np.trace(a.rotation.T @ train[row].rotation) - 1) / 2, -1, 1)))
        for a, row in zip(held_out, rows, strict=True)
    ]
    found = nearest_training_poses([(train[:200], held_out[:15]), (train, held_out[15:])])
    assert np.isclose(found["median_distance_m"], np.median(distance), atol=1e-6)
    assert np.isclose(found["p95_distance_m"], np.percentile(distance, 95), atol=1e-6)
    assert np.isclose(found["median_angle_deg"], np.median(angles), atol=1e-5)
    assert np.isclose(found["p95_angle_deg"], np.percentile(angles, 95), atol=1e-5)


def test_a_view_is_known_where_a_training_pose_is_near_and_turned_alike() -> None:
    rng = np.random.default_rng(1)
    train, held_out = (
        [Pose.from_xyz_rpy([620_000 + x, y, z], [0.0, 0.0, a]) for x, y, z, a in rng.uniform(0, [5, 1, 1, 6.3], (n, 4))]
        for n in (300, 200)
    )
    train = [pose for pose in train for _ in range(2)]  # a robot that stands half of the time: the usual step is none
    assert TrainingArea.of(train).cell_m == 0.25
    expected = []
    for one in held_out:
        apart = [np.linalg.norm(one.position_m - other.position_m) for other in train]
        turned = [Rotation.from_matrix(one.rotation.T @ other.rotation).magnitude() for other in train]
        expected.append(bool(np.any((np.array(apart) <= 0.25) & (np.degrees(turned) <= 20))))
    assert 20 < sum(expected) < 180
    assert known_views(train, held_out).tolist() == expected


def test_a_fast_robots_views_may_be_two_steps_apart() -> None:
    train = [yaw_pose(0.8 * i) for i in range(20)]
    assert known_views(train, [yaw_pose(4.0, 1.5), yaw_pose(4.0, 1.7), yaw_pose(4.0, 0.0, 25.0)]).tolist() == [
        True,
        False,
        False,
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=30))
def test_training_poses_and_their_surroundings_are_inside(places: list[tuple[float, float]]) -> None:
    poses = [yaw_pose(x, y) for x, y in places]
    area = TrainingArea.of(poses)
    assert not area.outside(poses).any()
    beside = [yaw_pose(x + 0.9 * area.cell_m, y - 0.9 * area.cell_m) for x, y in places]
    assert not area.outside(beside).any()


def test_the_middle_of_a_loop_is_outside() -> None:
    angles = np.linspace(0, 2 * np.pi, 500)
    area = TrainingArea.of([yaw_pose(20 * np.cos(a), 20 * np.sin(a)) for a in angles])
    held_out = [yaw_pose(0, 0), yaw_pose(20.1, 0), yaw_pose(0, -19.9), yaw_pose(17, 0), yaw_pose(400, 0)]
    assert area.outside(held_out).tolist() == [True, False, False, True, True]


def test_the_record_stays_small_however_far_the_robot_drove() -> None:
    rng = np.random.default_rng(0)
    area = TrainingArea.of([yaw_pose(*xy) for xy in rng.uniform(0, 5000, (5000, 2))])
    assert len(area.cells) <= 1000
    again = TrainingArea.from_training({"area": json.loads(json.dumps(area.to_record()))})
    assert again is not None
    assert again.cell_m == area.cell_m
    np.testing.assert_array_equal(again.cells, area.cells)
    assert TrainingArea.from_training({}) is None


@pytest.mark.parametrize("record", [{}, None, {"cell_m": 0.25, "cells": [[1, 2]]}, {"cell_m": "wide", "cells": []}])
def test_a_malformed_record_of_the_area_is_rejected(record: object) -> None:
    with pytest.raises(CheckpointError, match="record of the training area is malformed"):
        TrainingArea.from_training({"area": record})


def test_the_area_s_centres_are_within_half_a_cell_of_the_poses() -> None:
    places = np.array([[3.1, -7.6, 0.0], [5.0, 5.0, 1.0], [-40.2, 0.1, 2.9]])
    area = TrainingArea.of([yaw_pose(x, y, z_m=z) for x, y, z in places])
    offsets = np.abs(area.centres_m[:, None] - places).max(axis=-1)
    assert offsets.min(axis=0).max() <= area.cell_m / 2
    assert offsets.min(axis=1).max() <= area.cell_m / 2


def test_a_checkpoint_s_record_tells_which_poses_are_of_unknown_places(caplog: pytest.LogCaptureFixture) -> None:
    train = [yaw_pose(x) for x in range(10)]
    with caplog.at_level("INFO"):
        record = json.loads(json.dumps(pose_record(train, [(train, [yaw_pose(2.5)])], 1.66)))
    assert "10 training poses over 9.0 x 0.0 x 0.0 m, mean 4.5, 0.0, 0.0 m, scale 1.66 m" in caplog.text
    assert "nearest training pose 0.50 m and 0.0 deg away" in caplog.text
    caplog.clear()
    assert record["held_out"]["median_distance_m"] == 0.5
    with caplog.at_level("WARNING"):
        warn_of_unknown_places(record, [yaw_pose(3.0), yaw_pose(5.1)])
        warn_of_unknown_places({}, [yaw_pose(100.0)])
        assert not caplog.records
        warn_of_unknown_places(record, [yaw_pose(3.0), yaw_pose(30.0), yaw_pose(4.0, 5.0)])
    assert "2 of 3 poses are outside the training area" in caplog.text


def test_the_record_of_a_training_holds_the_extrinsics_that_its_frames_came_with() -> None:
    frame = random_frame(1)
    source = ListSource([Sample(frame, yaw_pose(1.0))], "drive")
    record = json.loads(json.dumps(data_record([source])))  # as the checkpoint's header keeps it
    found = trained_extrinsics(record)["camera_from_lidar"]
    assert frame.camera_from_lidar is not None
    np.testing.assert_allclose(found.matrix, frame.camera_from_lidar.matrix)
    assert record["data"] == [{"name": "drive", "frames": 1}]
    blind = ListSource([Sample(random_frame(2, names=["image"]), yaw_pose(1.0))])
    blind.samples[0] = Sample(dataclasses.replace(blind.samples[0].frame, camera_from_lidar=None), yaw_pose(1.0))
    assert "extrinsics" not in data_record([blind])


def test_the_record_of_a_training_holds_how_its_messages_were_read(caplog: pytest.LogCaptureFixture) -> None:
    first, second = (ListSource([Sample(random_frame(seed), yaw_pose(1.0))], f"drive {seed}") for seed in (1, 2))
    assert data_record([first])["inputs"] == {}
    second.readings = {"image_bits": 12}
    third = ListSource([], "drive 3")
    third.readings = {"image_bits": 10, "lidar_times": None}
    with caplog.at_level("INFO"):
        assert data_record([first, second, third])["inputs"] == {"image_bits": 12, "lidar_times": None}
    assert "drive 3: image_bits is 10, in recordings before it 12" in caplog.text
