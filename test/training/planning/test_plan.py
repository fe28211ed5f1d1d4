# SPDX-License-Identifier: Apache-2.0
"""Plans: which system and settings follow from a survey, and how long the training becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import yaw_pose
from training.config import load_config
from training.planning import Costs, Plan, make_plan, schedule
from training.planning.choices import choose_folds, cylinder, lidar_ranges, regions, shipped
from training.survey import CameraFacts, DepthFacts, LidarModel, PathFacts, Recording, Survey
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.frame import Frame, PinholeCamera, Sample
from vmloc_ros.core.geometry import Pose

LIDAR = LidarModel(16, (-15.0, 15.0), (-180.0, 180.0), 1800, 8.0, 38.0, (-1.8, 6.0), 120.0, 25000, 0.1)
PATH = PathFacts(400.0, 100.0, (30.0, 20.0, 0.0), 0.5, 10.0, 1.0)
COSTS = Costs(1.0, 0.01, 0.05, 0.005, 0.03, 0.3, 0.05)
CAMERA = PinholeCamera(64, 48, 50.0, 50.0, 32.0, 24.0)
LAPS = [yaw_pose(0.5 * (i % 100)) for i in range(1000)]


def found(*modalities: str, known: bool = True, mounted: bool = True, **changes: Any) -> Survey:
    """A survey of one bag with these sensors: ten passes over the same 50 m."""
    camera = CameraFacts((640, 480), known, "", 0.5, 0.0) if "image" in modalities else None
    depth = DepthFacts((640, 480), 0.8, 2.0, 4.0) if "depth" in modalities else None
    sample = Sample(Frame(0, camera=CAMERA if known else None), Pose.identity())
    survey = Survey(
        recordings=(Recording("bag", "bag", len(LAPS), 100.0, ""),),
        map_frame="map",
        body_frame="base_link",
        modalities=modalities,
        left_out=(),
        mounted=modalities if mounted else (),
        camera=camera,
        depth=depth,
        lidar=LIDAR if "lidar" in modalities else None,
        path=PATH,
        complete_share=1.0,
        read_s=0.01,
        poses=tuple(LAPS),
        mounts={},
        sample=(sample,),
    )
    return replace(survey, **changes)


def plan(survey: Survey, *overrides: str, weights: bool = True, **options: Any) -> Plan:
    return make_plan(survey, overrides=overrides, weights=lambda name: weights, **options)


def text(planned: Plan, topic: str) -> str:
    return "\n".join(choice.text for choice in planned.choices if choice.topic == topic)


@pytest.mark.parametrize(
    ("survey", "system", "modalities"),
    [
        (found("image", "lidar"), "vmloc_dense", ("image", "lidar")),
        (found("image", "depth"), "vmloc_dense", ("image", "depth")),
        (found("image", "depth", "lidar"), "vmloc_dense", ("image", "lidar")),
        (found("depth"), "dense_lidar", ("depth",)),
        (found("lidar", known=False), "dense_lidar", ("lidar",)),
        (found("image", "lidar", known=False), "dense_lidar", ("lidar",)),
        (found("image"), "image_vmloc", ("image",)),
        (found("image", known=False, mounted=False), "image_vmloc", ("image",)),
        (found("image", "lidar", mounted=False), "vmloc", ("image", "lidar")),
        (found("depth", known=False), "depth_vmloc", ("depth",)),
    ],
)
def test_the_system_follows_from_the_sensors_and_what_is_known_of_them(
    survey: Survey, system: str, modalities: Sequence[str]
) -> None:
    config = plan(survey).config
    assert (config.model.name, config.preprocess.modalities) == (system, modalities)


def test_a_camera_alone_is_told_what_to_expect_and_an_unknown_mount_what_to_record() -> None:
    assert "expect decimetres" in text(plan(found("image")), "system")
    assert "/tf_static" in text(plan(found("image", "lidar", mounted=False)), "system")
    assert "camera matrix is not known" in text(plan(found("image", "lidar", known=False)), "not used")


def test_a_depth_camera_has_the_settings_of_dense_rgbd() -> None:
    config, shipped_one = plan(found("image", "depth"), "optimizer.precision=bf16").config, shipped("dense_rgbd.yaml")
    assert config.model.frozen
    assert config.pretrained is True
    assert config.preprocess.shortest_side == shipped_one["preprocess"]["shortest_side"]
    assert config.optimizer.learning_rate == shipped_one["optimizer"]["learning_rate"]
    assert config.model.map_voxel_m == 0.04


def test_without_imagenet_weights_everything_is_trained_from_scratch_and_the_plan_says_so() -> None:
    planned = plan(found("image", "depth"), weights=False)
    assert planned.config.pretrained is False
    assert not planned.config.model.frozen
    assert planned.config.model.backbone == "shufflenet_v2_x0_5"
    assert "cannot be had here (--set pretrained=FILE gives them)" in text(planned, "backbone")
    given = plan(found("image", "depth"), "pretrained=mine.pth", weights=False)
    assert given.config.pretrained == "mine.pth"
    assert given.config.model.frozen


def test_the_cylinder_has_a_row_for_every_ring_and_its_edges_half_a_spacing_beyond() -> None:
    values, _ = cylinder(LIDAR)
    assert (values["rows"], values["columns"]) == (16, 720)
    assert (values["elevation_min_deg"], values["elevation_max_deg"]) == (-16.01, 16.01)
    ahead, _ = cylinder(replace(LIDAR, azimuth_deg=(-60.0, 60.0), columns=600))
    assert (ahead["columns"], ahead["azimuth_min_deg"], ahead["azimuth_max_deg"]) == (240, -60.0, 60.0)
    # Every ring has a row of its own.
    row = (values["elevation_max_deg"] - np.linspace(-15, 15, 16)) / 32.02 * 16
    assert sorted(np.floor(row).astype(int)) == list(range(16))


def test_ranges_stay_those_that_were_tested_where_they_fit() -> None:
    usual = shipped("dense_street.yaml")["preprocess"]
    assert lidar_ranges(LIDAR, usual)[0] == {"lidar_range_m": [0.0, 40.0], "lidar_height_m": [-2.5, 8.0]}
    far = lidar_ranges(replace(LIDAR, far_m=95.0, height_m=(-4.2, 21.5), intensity=0.9), usual)[0]
    assert far == {"lidar_range_m": [0.0, 100.0], "lidar_height_m": [-5.0, 22.0], "lidar_intensity": [0.0, 0.9]}


def test_there_is_a_region_for_every_50_m_of_a_long_road() -> None:
    assert regions(150.0)[0] == 1
    assert regions(1000.0)[0] == 20
    long = plan(found("image", "lidar", path=replace(PATH, road_m=1000.0))).config
    assert (long.model.regions, long.model.context) == (20, True)


def test_folds_have_the_longest_blocks_whose_views_are_known_elsewhere() -> None:
    assert choose_folds(LAPS, 1.0).values == {"folds": 3, "block": 100}
    short = [yaw_pose(0.5 * (i % 50)) for i in range(200)]
    assert choose_folds(short, 1.0).values == {"folds": 3, "block": 75}
    once = choose_folds([yaw_pose(5.0 * i) for i in range(300)], 0.0)
    assert once.values["folds"] == 0
    assert "Record every place twice" in once.text


def test_validation_data_replace_folds() -> None:
    config = plan(found("image", "lidar"), validation=found("image", "lidar")).config
    assert config.validation.folds == 0


@pytest.mark.parametrize("sensors", [("image", "lidar"), ("image", "depth"), ("image",)])
def test_more_minutes_give_no_fewer_steps_and_the_stages_fit_in_them(sensors: tuple[str, ...]) -> None:
    frames = []
    for minutes in (20.0, 40.0, 100.0, 400.0):
        planned, stages = schedule(plan(found(*sensors)), COSTS, minutes)
        config = planned.config
        assert sum(stage.seconds for stage in stages) <= 60 * minutes
        frames.append(config.optimizer.epochs / config.source.stride)
    assert frames == sorted(frames)
    assert frames[-1] > frames[0]


def test_a_plan_that_does_not_fit_says_so() -> None:
    planned, stages = schedule(plan(found("image", "lidar")), COSTS, 0.1)
    assert sum(stage.seconds for stage in stages) > 6
    assert "LONGER THAN ASKED" in text(planned, "length")


def test_the_learning_rate_warms_up_within_the_shortest_training() -> None:
    for minutes in (0.1, 15.0):
        config = schedule(plan(found("image", "depth")), COSTS, minutes)[0].config
        rows = len(LAPS) // config.source.stride * config.frozen.views
        fold_steps = config.validation.fold_epochs * (rows * 2 // 3 // config.optimizer.batch_size)
        assert config.optimizer.warmup_steps <= max(1, fold_steps // 4) + 1


def test_overrides_win_and_wrong_ones_are_errors() -> None:
    planned, _ = schedule(plan(found("image", "lidar"), "optimizer.epochs=3", "seed=7"), COSTS, 15)
    assert (planned.config.optimizer.epochs, planned.config.seed) == (3, 7)
    assert "seed" not in planned.layer
    with pytest.raises(ConfigError, match="optimizer"):
        plan(found("image", "lidar"), "optimizer.epoch=3")


def test_the_written_plan_is_the_same_configuration(tmp_path: Path) -> None:
    for sensors in (("image", "lidar"), ("image", "depth"), ("image",), ("depth",)):
        planned, _ = schedule(plan(found(*sensors)), COSTS, 15)
        file = tmp_path / "m.plan.yaml"
        planned.write(file, ["a heading"])
        assert load_config([file]) == planned.config
        assert file.read_text().startswith("# a heading\n# system ")
