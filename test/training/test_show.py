# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from helpers import ListSource, random_frame, yaw_pose
from training import show as show_module
from training.show import show
from training.sources import factory
from training.sources.options import SourceOptions
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Frame, PinholeCamera, PointCloud, Sample
from vmloc_ros.core.geometry import Pose

OPTIONS = SourceOptions()


def test_the_picture_has_a_row_for_everything_that_the_data_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights = []
    for names in (("image",), ("image", "depth"), ("image", "depth", "lidar")):
        samples = [Sample(random_frame(i, names=names), yaw_pose(float(i))) for i in range(5)]
        source = ListSource(samples)
        source.modalities = names
        monkeypatch.setattr(factory, "open_sources", lambda *_, source=source: [source])
        assert show([tmp_path], tmp_path / "show.png", split="all", options=OPTIONS, frames=3) == {"list": 5}
        picture = cv2.imread(str(tmp_path / "show.png"))
        assert picture.std() > 10
        heights.append(len(picture))
    assert heights[1] - heights[0] == pytest.approx((heights[2] - heights[1]) / 2, abs=2)


def test_frames_are_spread_over_all_sources_and_none_is_read_farther_than_needed() -> None:
    read: list[float] = []

    class Counting(ListSource):
        def __iter__(self):
            for sample in self.samples:
                read.append(sample.map_from_body.position_m[0])
                yield sample

    samples = [Sample(random_frame(i), yaw_pose(float(i))) for i in range(12)]
    chosen = show_module._choose([Counting(samples[:8]), Counting(samples[8:])], 3)
    assert [sample.map_from_body.position_m[0] for sample in chosen] == [0, 6, 11]
    assert 7 not in read


def test_a_cloud_is_drawn_where_the_camera_sees_it() -> None:
    """A point two metres ahead and half a metre to the left of a camera that the lidar sits above of."""
    camera = PinholeCamera(80, 60, 50.0, 40.0, 39.5, 29.5)
    optical_from_lidar = Pose.from_matrix(
        np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.1], [1, 0, 0, 0], [0, 0, 0, 1]])
    )  # the lidar is 0.1 m above the camera
    points = np.array([[2.0, 0.5, -0.3], [-2.0, 0.5, 0.0], [np.nan, 0, 0]], np.float32)
    frame = Frame(0, np.zeros((60, 80, 3), np.uint8), None, PointCloud(points), camera, optical_from_lidar)
    axes = Figure().subplots()
    show_module._draw_overlay(axes, frame)
    ((u, v),) = axes.collections[0].get_offsets()
    assert u == pytest.approx(39.5 - 50 * 0.5 / 2)
    assert v == pytest.approx(29.5 + 40 * (0.3 - 0.1) / 2)


def test_nothing_to_show_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        show([tmp_path / "absent"], tmp_path / "show.png", split="all", options=OPTIONS, frames=2)
    assert not (tmp_path / "show.png").exists()


def title(source: ListSource) -> str:
    axes = Figure().subplots()
    show_module._draw_poses(axes, [source], source.samples[:1])
    return axes.get_title()


def test_the_title_says_whose_poses_are_drawn_and_whether_that_is_certain() -> None:
    samples = [Sample(random_frame(i), yaw_pose(float(i))) for i in range(3)]
    source = ListSource(samples, body_frame="rig", mounts={"image": Pose.identity()})
    assert title(source) == "poses of rig in map;\narrows: where the camera looks in the frames above"
    source.doubts = ["assumed: the poses are those of rig"]
    assert title(source).startswith("poses of rig (see the warning) in map;")
    source.mounts = {}
    assert title(source).endswith("arrows: x axis of rig, as where the camera is mounted is not known")
    source.modalities = ("lidar",)
    assert title(source).endswith("arrows: x axis of rig")


def test_arrows_point_where_the_camera_looks() -> None:
    """To the robot's left, by a camera that is mounted so."""
    left = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # optical z along y
    source = ListSource([Sample(random_frame(0), yaw_pose(0.0))], mounts={"image": Pose.from_matrix(left)})
    np.testing.assert_allclose(show_module._forwards(source)[0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(show_module._forwards(ListSource([]))[0], [1, 0, 0])
