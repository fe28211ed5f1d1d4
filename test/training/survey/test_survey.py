# SPDX-License-Identifier: Apache-2.0
"""Surveys of small recordings: what they hold, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from room_bags import write_room_bag

from helpers import yaw_pose
from training.survey import describe, survey
from training.survey.path import path_facts, road_length_m
from training.survey.survey import sensors_of
from training_runs import write_scene
from vmloc_ros.core.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMLOC_CACHE", str(tmp_path / "cache"))


def test_a_bag_of_camera_and_lidar_whose_poses_are_transforms(tmp_path: Path) -> None:
    bag = write_room_bag(tmp_path / "bag", ["image", "lidar"], 120, poses_in_tf=True)
    found = survey([bag])
    assert found.modalities == found.mounted == sensors_of(found) == ("image", "lidar")
    assert (found.map_frame, found.body_frame, found.frames) == ("map", "base_link", 120)
    assert found.camera is not None
    assert (found.camera.size, found.camera.is_calibrated, found.camera.distortion) == ((64, 48), True, "")
    assert found.lidar is not None
    assert found.lidar.rings == 0  # the room's beams have random directions
    assert found.path.rate_hz == pytest.approx(10.0, rel=1e-6)
    text = "\n".join(describe(found))
    assert "map -> base_link" in text
    assert "where every sensor is mounted is known" in text


def test_depth_alone(tmp_path: Path) -> None:
    found = survey([write_room_bag(tmp_path / "bag", ["depth"], 20)])
    assert (found.modalities, found.mounted, found.camera, found.lidar) == (("depth",), ("depth",), None, None)
    assert sensors_of(found) == ("depth",)
    assert found.depth is not None
    assert found.depth.measured_share == 1.0


def test_without_transforms_no_sensor_is_mounted(tmp_path: Path) -> None:
    found = survey([write_room_bag(tmp_path / "bag", ["depth", "lidar"], 20, mounts=False)])
    assert (found.modalities, found.mounted, sensors_of(found)) == (("depth", "lidar"), (), ())
    assert "depth and lidar is mounted on base_link is NOT known" in "\n".join(describe(found))


def test_without_camera_info_the_camera_is_not_calibrated_and_no_dense_sensor(tmp_path: Path) -> None:
    found = survey([write_room_bag(tmp_path / "bag", ["image"], 20, calibrated=False)])
    assert found.camera is not None
    assert not found.camera.is_calibrated
    assert sensors_of(found) == ()
    assert "NOT calibrated" in "\n".join(describe(found))


def test_what_only_some_recordings_have_is_left_out_and_named(tmp_path: Path) -> None:
    both = write_room_bag(tmp_path / "both", ["image", "lidar"], 20)
    one = write_room_bag(tmp_path / "one", ["image"], 20)
    found = survey([both, one])
    assert found.modalities == ("image",)
    assert found.left_out == ("lidar: only both of 2 paths have it",)


def test_ambiguous_topics_are_an_error_that_names_the_key(tmp_path: Path) -> None:
    from bag_builders import calibration, images, poses, write_bag

    bag = write_bag(tmp_path / "bag", images(), images(topic="/rear/image_raw"), poses(), calibration())
    with pytest.raises(DataError, match=r"several image topics.*source\.image_topic"):
        survey([bag])


def test_a_folder_of_7_scenes(tmp_path: Path) -> None:
    found = survey([write_scene(tmp_path / "scene", frames=12)])
    assert found.recordings[0].kind == "seven_scenes"
    assert found.modalities == ("image", "depth")
    assert found.depth is not None
    assert 0.5 <= found.depth.median_m <= 3.0
    assert len(found.sample) == 12


def test_road_counts_once_however_often_it_is_driven() -> None:
    turn = np.linspace(0, 6 * np.pi, 900)
    loop = np.stack([30 * np.cos(turn), 30 * np.sin(turn), 0 * turn], axis=1)
    assert road_length_m(loop) == pytest.approx(2 * np.pi * 30, rel=0.1)
    assert road_length_m(loop[:2]) < 5


def test_a_path_that_is_driven_once_is_not_revisited_and_one_driven_twice_is() -> None:
    out = [yaw_pose(0.5 * i) for i in range(100)]
    stamps = [i * 100_000_000 for i in range(100)]
    assert path_facts([out], [stamps]).revisited == 0
    assert path_facts([out, out], [stamps, stamps]).revisited == 1
    turned = [yaw_pose(0.5 * i, yaw_deg=180) for i in range(100)]
    assert path_facts([out, turned], [stamps, stamps]).revisited == 0
    facts = path_facts([out], [stamps])
    assert facts.driven_m == pytest.approx(49.5)
    assert facts.step_m == pytest.approx(0.5)
