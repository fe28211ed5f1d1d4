# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from helpers import ListSource, random_frame, yaw_pose
from training.evaluate import Evaluation, evaluate, write_results, write_tum
from training.plots import plot_errors, plot_trajectory, save_trajectory_plot
from training.retrieval import nearest_image_errors
from training.testing import write_random_checkpoint
from vmloc_ros.core.errors import DataError, OutputError
from vmloc_ros.core.frame import Estimate, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    path = tmp_path_factory.mktemp("evaluate") / "model.safetensors"
    write_random_checkpoint(path)
    return Localizer.load(path, "cpu")


def samples(count: int, start: int = 0) -> list[Sample]:
    return [Sample(random_frame(start + i), yaw_pose(float(i), 0.5 * i, 3.0 * i)) for i in range(count)]


def evaluation(truth: list[Pose], estimated: list[Pose]) -> Evaluation:
    stamps = range(1_700_000_000_000_000_001, 1_700_000_000_000_000_001 + len(truth))
    return Evaluation(truth, [Estimate(s, p, np.eye(6), ("image",)) for s, p in zip(stamps, estimated, strict=True)])


# --- evaluate ----------------------------------------------------------------------------------------------------


def test_every_frame_of_every_source_is_answered_by_the_localizer_in_order(localizer: Localizer) -> None:
    first, second = samples(3), samples(2, start=10)
    result = evaluate(localizer, [ListSource(first), ListSource(second)], progress=False)
    for sample, truth, estimate in zip([*first, *second], result.truth, result.estimates, strict=True):
        expected = localizer.localize(sample.frame)
        assert truth is sample.map_from_body
        assert estimate.stamp_ns == sample.frame.stamp_ns
        np.testing.assert_array_equal(estimate.map_from_body.matrix, expected.map_from_body.matrix)
    distance = [
        np.linalg.norm(t.position_m - e.map_from_body.position_m)
        for t, e in zip(result.truth, result.estimates, strict=True)
    ]
    np.testing.assert_allclose(result.errors.position_m, distance)


def test_poses_of_another_body_are_refused_instead_of_compared(localizer: Localizer) -> None:
    source = ListSource(samples(1), "garden", body_frame="camera")
    with pytest.raises(DataError, match="garden has poses of 'camera', the checkpoint predicts 'base_link'"):
        evaluate(localizer, [source], progress=False)


def test_no_frames_are_an_error(localizer: Localizer) -> None:
    for sources in ([], [ListSource([])]):
        with pytest.raises(DataError, match="there is no frame to evaluate"):
            evaluate(localizer, sources, progress=False)


# --- files -------------------------------------------------------------------------------------------------------


def test_results_hold_metrics_errors_trajectories_and_a_picture(tmp_path: Path) -> None:
    truth = [yaw_pose(float(i), 0, 5.0 * i) for i in range(4)]
    estimated = [yaw_pose(float(i), 0.1 * i, 5.0 * i + i) for i in range(4)]
    result = evaluation(truth, estimated)
    write_results(result, tmp_path / "results", "a title")
    names = {"metrics.json", "errors.csv", "estimate.tum", "truth.tum", "trajectory.png"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == names
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert metrics == result.errors.summary()
    assert metrics["median_position_m"] == pytest.approx(0.15)
    with (tmp_path / "results" / "errors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["stamp_ns"]) for row in rows] == [estimate.stamp_ns for estimate in result.estimates]
    np.testing.assert_allclose([float(row["position_m"]) for row in rows], [0, 0.1, 0.2, 0.3], atol=1e-12)
    np.testing.assert_allclose([float(row["rotation_deg"]) for row in rows], [0, 1, 2, 3], atol=1e-9)
    picture = cv2.imread(str(tmp_path / "results" / "trajectory.png"))
    assert picture is not None
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_results_into_a_folder_that_cannot_be_made_are_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        write_results(evaluation([yaw_pose(0)], [yaw_pose(1)]), tmp_path / "file", "t")


finite = st.floats(-1e7, 1e7)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**62), finite, finite, finite, st.lists(st.floats(-1, 1), min_size=4, max_size=4)
        ).filter(lambda row: np.linalg.norm(row[4]) > 1e-3),
        min_size=1,
        max_size=5,
    )
)
def test_a_tum_file_gives_back_stamps_to_the_nanosecond_and_poses(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float, float, float, list[float]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "trajectory.tum"
    poses = [Pose(np.array(row[1:4]), np.array(row[4])) for row in rows]
    write_tum(path, [row[0] for row in rows], poses)
    lines = path.read_text().splitlines()
    assert len(lines) == len(rows)
    for line, row, pose in zip(lines, rows, poses, strict=True):
        stamp, *numbers = line.split(" ")
        seconds, nanoseconds = stamp.split(".")
        assert len(nanoseconds) == 9
        assert int(seconds) * 1_000_000_000 + int(nanoseconds) == row[0]
        values = [float(number) for number in numbers]
        np.testing.assert_allclose(values[:3], pose.position_m, atol=1e-6)
        np.testing.assert_allclose(values[3:], pose.quaternion_wxyz[[1, 2, 3, 0]], atol=1e-9)  # x y z w


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("moving", [True, False])
def test_a_picture_is_drawn_of_any_trajectory(tmp_path: Path, count: int, moving: bool) -> None:
    truth = [yaw_pose(620_000.0 + i * moving, 5.7e6) for i in range(count)]
    save_trajectory_plot(tmp_path / "p.png", truth, truth, "no error at all")
    picture = cv2.imread(str(tmp_path / "p.png"))
    assert picture is not None
    assert picture.std() > 1


def test_the_axes_drawn_are_those_of_greatest_extent() -> None:
    """A camera's world may have y down: what matters is where the path goes."""
    truth = [yaw_pose(float(i), 0.01 * i, z_m=5 * np.sin(i)) for i in range(20)]
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plot_trajectory(axes, truth, truth, np.zeros((3, 3)))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x (m)", "z (m)")
    low, high = axes.get_xlim()
    assert low < 0 < 19 < high


def test_one_wild_estimate_does_not_shrink_the_map() -> None:
    truth = [yaw_pose(float(i), float(i % 5)) for i in range(40)]
    estimates = [*truth[:-1], yaw_pose(1e6, 1e6)]
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plot_trajectory(axes, truth, estimates)
    assert axes.get_xlim()[1] < 60


def test_errors_are_drawn_in_their_own_units() -> None:
    truth, estimates = [yaw_pose(0.0)] * 3, [yaw_pose(2.0, 0.0, 7.0)] * 3
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plot_errors(axes, truth, estimates)
    position, rotation = axes.get_lines()[:2]
    np.testing.assert_allclose(position.get_ydata(), 2.0)
    np.testing.assert_allclose(rotation.get_ydata(), 7.0)


# --- nearest training image --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return str(path)


def test_a_training_image_itself_is_found_again(weights: str) -> None:
    known = samples(6)
    errors = nearest_image_errors(
        [ListSource(known)], [ListSource([known[4], known[1]])], "squeezenet1_1", weights, progress=False
    )
    np.testing.assert_allclose(errors.position_m, 0)
    np.testing.assert_allclose(errors.rotation_deg, 0, atol=1e-6)


def test_the_answer_is_the_pose_of_the_most_similar_image(weights: str) -> None:
    known = samples(5)
    image = known[3].frame.image.copy()
    image[:4] = 0  # a strip is covered
    asked = Sample(random_frame(99), yaw_pose(3.0, 1.5, 9.0))
    object.__setattr__(asked.frame, "image", image)
    errors = nearest_image_errors([ListSource(known)], [ListSource([asked])], "squeezenet1_1", weights, progress=False)
    np.testing.assert_allclose(errors.position_m, 0)


def test_frames_without_an_image_take_no_part_and_none_at_all_is_an_error(weights: str) -> None:
    known = samples(3)
    lidar_only = Sample(random_frame(50, names=("lidar",)), yaw_pose(100.0))
    errors = nearest_image_errors(
        [ListSource([lidar_only, *known])],
        [ListSource([lidar_only, known[0]])],
        "squeezenet1_1",
        weights,
        progress=False,
    )
    assert len(errors) == 1
    with pytest.raises(DataError, match="no images in cellar for the retrieval baseline"):
        nearest_image_errors(
            [ListSource(known)], [ListSource([lidar_only], "cellar")], "squeezenet1_1", weights, progress=False
        )
