# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from helpers import random_frame, yaw_pose
from training.evaluation.figures import (
    save_calibration_plot,
    save_corruption_plot,
    save_track_plot,
    save_trajectory_plot,
)
from training.evaluation.metrics import PoseErrors
from training.evaluation.plots import plot_calibration, plot_error_cdf, plot_error_map, plot_errors, plot_trajectory
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import PreprocessConfig
from vmloc_ros.core.projection import CylindricalConfig


@pytest.fixture
def axes() -> Axes:
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


def curve(count: int, start: float = 0.0) -> list[Pose]:
    return [yaw_pose(start + i, float(i % 5)) for i in range(count)]


def labels(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


# --- seen from above ---------------------------------------------------------------------------------------------


def test_the_trajectory_has_the_colours_of_the_papers_figure(axes: Axes) -> None:
    truth, estimates = curve(10), [pose @ yaw_pose(0.0, 1.0) for pose in curve(10)]
    plot_trajectory(axes, [(truth[:6], estimates[:6]), (truth[6:], estimates[6:])])
    lines = axes.get_lines()
    assert [to_hex(line.get_color()) for line in lines[:4]] == ["#000000", "#ff0000"] * 2
    np.testing.assert_allclose(lines[0].get_xydata(), [pose.position_m[:2] for pose in truth[:6]])
    np.testing.assert_allclose(lines[3].get_xydata(), [pose.position_m[:2] for pose in estimates[6:]])
    assert (lines[-1].get_marker(), to_hex(lines[-1].get_color())) == ("*", "#ffd700")
    np.testing.assert_allclose(lines[-1].get_xydata(), [truth[0].position_m[:2]])
    assert labels(axes) == ["ground truth", "estimate", "start"]


@pytest.mark.parametrize("plot", [plot_trajectory, plot_error_map])
def test_the_axes_drawn_are_those_of_greatest_extent(axes: Axes, plot) -> None:
    """A camera's world may have y down: what matters is where the path goes."""
    truth = [yaw_pose(float(i), 0.01 * i, z_m=5 * np.sin(i)) for i in range(20)]
    plot(axes, [(truth, truth)])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x (m)", "z (m)")
    low, high = axes.get_xlim()
    assert low < 0 < 19 < high


@pytest.mark.parametrize("plot", [plot_trajectory, plot_error_map])
def test_one_wild_estimate_does_not_shrink_the_map(axes: Axes, plot) -> None:
    plot(axes, [(curve(40), [*curve(39), yaw_pose(1e6, 1e6)])])
    assert axes.get_xlim()[1] < 60


def test_wild_estimates_are_counted_and_many_wrong_ones_are_shown(axes: Axes) -> None:
    plot_trajectory(axes, [(curve(40), [*curve(39), yaw_pose(1e6, 1e6)])])
    assert "1 of 40 estimates are outside" in labels(axes)
    axes.clear()
    plot_trajectory(axes, [(curve(40), curve(40, start=500.0))])
    assert axes.get_xlim()[0] < 0
    assert axes.get_xlim()[1] > 530


def test_the_map_colours_estimates_by_their_position_error_over_the_points_given(axes: Axes) -> None:
    truth = curve(20)
    plot_error_map(axes, [(truth, [pose @ yaw_pose(0.0, 0.1 * i) for i, pose in enumerate(truth)])], np.ones((3, 3)))
    points, joints, dots = axes.collections
    assert points.get_offsets().tolist() == [[1.0, 1.0]] * 3
    assert len(joints.get_segments()) == 20
    np.testing.assert_allclose(dots.get_array(), 0.1 * np.arange(20), atol=1e-12)


# --- curves ------------------------------------------------------------------------------------------------------


def test_errors_are_drawn_in_their_own_units_over_frames_or_time(axes: Axes) -> None:
    errors = PoseErrors(np.array([2.0, np.nan, 2.0]), np.array([7.0, np.nan, 9.0]))
    plot_errors(axes, errors)
    position, _, rotation, median = axes.get_lines()
    np.testing.assert_allclose(position.get_ydata(), errors.position_m)
    np.testing.assert_allclose(rotation.get_ydata(), errors.rotation_deg)
    np.testing.assert_allclose(rotation.get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(median.get_ydata(), 8.0)
    assert axes.get_xlabel() == "frame"
    axes.clear()
    plot_errors(axes, errors, [0.0, 0.5, 4.0])
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), [0.0, 0.5, 4.0])
    assert axes.get_xlabel() == "time (s)"


def test_the_distribution_rises_to_one_and_is_at_half_at_the_median(axes: Axes) -> None:
    values = np.random.default_rng(0).lognormal(size=101)
    plot_error_cdf(axes, {"drive": values, "all": values * 2}, "position error (m)")
    x, share = axes.get_lines()[0].get_data()
    assert share[-1] == 1
    assert x[np.searchsorted(share, 0.5)] == pytest.approx(np.median(values))
    np.testing.assert_allclose(axes.get_lines()[1].get_xdata(), 2 * x)
    assert labels(axes) == ["drive", "all"]


def test_of_many_curves_the_legend_names_only_their_number_and_the_last(axes: Axes) -> None:
    plot_error_cdf(axes, {**{str(i): np.arange(3.0) for i in range(30)}, "all": np.arange(4.0)}, "m")
    assert labels(axes) == ["30 others", "all"]


def test_calibration_is_the_share_of_levels_below_the_nominal_one(axes: Axes) -> None:
    plot_calibration(axes, {"uniform": np.linspace(0, 1, 1001), "too small": np.full(4, 0.93)})
    _, uniform, marks, small, _ = axes.get_lines()
    np.testing.assert_allclose(uniform.get_ydata(), uniform.get_xdata(), atol=2e-3)
    np.testing.assert_allclose(marks.get_xdata(), [0.5, 0.9, 0.95])
    np.testing.assert_allclose(small.get_ydata(), small.get_xdata() >= 0.93)


# --- files -------------------------------------------------------------------------------------------------------


def colours(path: Path) -> int:
    picture = cv2.imread(str(path))
    assert picture is not None
    return len(np.unique(picture.reshape(-1, 3), axis=0))


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("moving", [True, False])
def test_a_picture_is_drawn_of_any_trajectory(tmp_path: Path, count: int, moving: bool) -> None:
    truth = [yaw_pose(620_000.0 + i * moving, 5.7e6) for i in range(count)]
    save_trajectory_plot(tmp_path / "p.png", truth, truth, "no error at all")
    assert colours(tmp_path / "p.png") > 20


@pytest.mark.parametrize("height_m", [0.1, 200.0])
def test_a_track_fills_its_picture_whatever_its_shape(tmp_path: Path, height_m: float) -> None:
    truth = [yaw_pose(float(i), height_m * (i % 2)) for i in range(20)]
    runs = [(truth[:10], truth[:10]), (truth[10:], truth[10:])]
    save_track_plot(tmp_path / "p.png", runs, [np.arange(10.0), np.arange(100.0, 110.0)], "a title")
    height, width = cv2.imread(str(tmp_path / "p.png")).shape[:2]
    assert width == 1400
    assert 600 <= height <= 1250
    assert (height > width * 0.8) == (height_m > 100)


def test_corrupted_inputs_are_drawn_as_the_network_sees_them(tmp_path: Path, monkeypatch) -> None:
    shown: list[np.ndarray] = []
    draw = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **more: shown.append(x) or draw(self, x, **more))
    cylinder = CylindricalConfig(rows=8, columns=64, elevation_min_deg=-30.0, elevation_max_deg=30.0)
    config = PreprocessConfig(modalities=("image", "lidar"), shortest_side=40, crop=(32, 32), cylinder=cylinder)
    frame = random_frame()
    black = replace(frame, image=np.zeros_like(frame.image), cloud=None)
    only_cloud = replace(frame, image=None)
    save_corruption_plot(tmp_path / "p.png", [(frame, black), (only_cloud, only_cloud)], config, "a title")
    assert colours(tmp_path / "p.png") > 100
    assert [picture.shape for picture in shown] == [(32, 32, 3), (32, 32, 3), (8, 64), (8, 64), (8, 64)]
    assert shown[0].any()
    assert not shown[1].any()
    valid = ~np.ma.getmaskarray(shown[2])
    assert 0 < valid.mean() < 1
    assert shown[2][valid].min() > 0


def test_a_long_title_is_broken(tmp_path: Path) -> None:
    save_calibration_plot(tmp_path / "p.png", {"pose": np.linspace(0, 1, 9)}, "a long title " * 10)
    edge = cv2.imread(str(tmp_path / "p.png"))[:, [0, -1]]
    assert (edge == 255).all()
