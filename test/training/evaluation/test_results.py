# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import random_frame, without_padding, yaw_pose
from training.evaluation.consistency import calibration_summary, effective_sample_size
from training.evaluation.corruption import Corruption
from training.evaluation.results import write_comparison, write_results, write_tum
from training.evaluation.tables import Row, mean_and_std, results_tables
from training.evaluation.tracks import EvaluatedTrack, Evaluation
from training.evaluation.trajectory import trajectory_summary
from vmloc_ros.core.errors import OutputError
from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose

TOGETHER = {"metrics.json", "errors.csv", "results.md", "results.csv", "error_cdf.png", "calibration.png"}
OF_A_TRACK = {"estimate.tum", "truth.tum", "trajectory.png"}


def track(name: str, offsets_m: list[float]) -> EvaluatedTrack:
    """Every error is sideways, and as many degrees as ten times its metres."""
    truth = [yaw_pose(float(i), 0.0, 5.0 * i) for i in range(len(offsets_m))]
    poses = [
        Pose(t.position_m + np.array([0, x, 0]), yaw_pose(0, 0, 5.0 * i + 10 * x).quaternion_wxyz)
        for i, (t, x) in enumerate(zip(truth, offsets_m, strict=True))
    ]
    start = 1_700_000_000_000_000_001
    estimates = [Estimate(start + i * 10**8, pose, np.eye(6) * 0.04, ("image",)) for i, pose in enumerate(poses)]
    return EvaluatedTrack(name, truth, estimates)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- one checkpoint ----------------------------------------------------------------------------------------------


def test_a_single_sequence_leaves_tables_trajectories_and_pictures_in_one_folder(tmp_path: Path) -> None:
    drive = track("drive", [0.0, 0.1, 0.2, 0.3])
    text = write_results(Evaluation([drive], "vmloc", checkpoint="m.safetensors"), tmp_path / "r")
    assert names(tmp_path / "r") == TOGETHER | OF_A_TRACK
    metrics = read_json(tmp_path / "r" / "metrics.json")
    expected = {
        **drive.errors.summary(),
        **trajectory_summary([(drive.truth, drive.poses)]),
        **calibration_summary(drive.truth, drive.estimates),
        "independent_errors": effective_sample_size(
            drive.truth, drive.poses, [one.covariance for one in drive.estimates]
        ),
    }
    assert metrics["median_position_m"] == pytest.approx(0.15)
    assert metrics.items() >= expected.items()
    assert metrics["sequences"] == {"drive": expected}
    assert (metrics["system"], metrics["checkpoint"]) == ("vmloc", "m.safetensors")
    assert "corruption" not in metrics
    for sequence, row in zip(("drive", "all"), read_csv(tmp_path / "r" / "results.csv"), strict=True):
        assert (row.pop("system"), row.pop("checkpoint"), row.pop("corruption")) == ("vmloc", "m.safetensors", "")
        assert row.pop("sequence") == sequence
        assert {key: float(value) for key, value in row.items()} == expected
    assert text == (tmp_path / "r" / "results.md").read_text()
    assert "| vmloc | 4 | 0.150 | 0.150 | 0.285 | 1.50 | 1.50 | 2.85 | 50.0 % | 100.0 % | 100.0 % |" in without_padding(
        text
    )


def test_errors_are_listed_frame_by_frame(tmp_path: Path) -> None:
    write_results(Evaluation([track("a", [0.0, 0.2]), track("b", [0.4])], "vmloc"), tmp_path)
    rows = read_csv(tmp_path / "errors.csv")
    start = 1_700_000_000_000_000_001
    assert [int(row["stamp_ns"]) for row in rows] == [start, start + 10**8, start]
    assert [row["sequence"] for row in rows] == ["a", "a", "b"]
    np.testing.assert_allclose([float(row["position_m"]) for row in rows], [0, 0.2, 0.4], atol=1e-12)
    np.testing.assert_allclose([float(row["rotation_deg"]) for row in rows], [0, 2, 4], atol=1e-9)
    expected = (np.array([0, 0.2, 0.4]) ** 2 + np.radians([0, 2, 4]) ** 2) / 0.04
    np.testing.assert_allclose([float(row["nees"]) for row in rows], expected, atol=1e-9)
    assert {row["confidence"] for row in rows} == {""}


def test_a_confidence_is_listed_and_has_a_table(tmp_path: Path) -> None:
    drive = track("drive", [0.0, 0.1, 0.6])
    estimates = [replace(e, confidence=c) for e, c in zip(drive.estimates, (0.5, 0.03, 0.01), strict=True)]
    text = write_results(Evaluation([replace(drive, estimates=estimates)], "vmloc"), tmp_path)
    assert [float(row["confidence"]) for row in read_csv(tmp_path / "errors.csv")] == [0.5, 0.03, 0.01]
    lines = without_padding(text).splitlines()
    assert lines[lines.index("## Confidence") + 4] == (
        "| vmloc | 0.0 % | 66.7 % | 33.3 % | 0.0 % | 1.000 "
        "| 0.000 | 0.000 | 0.00 | 0.00 | 100.0 % | 100.0 % | 100.0 % |"
    )
    assert read_json(tmp_path / "metrics.json")["withheld"] == pytest.approx(2 / 3)


def test_several_sequences_have_a_row_and_a_folder_each(tmp_path: Path) -> None:
    evaluation = Evaluation([track("east", [0.1, 0.1, 0.1]), track("west", [0.5])], "vmloc")
    baseline = track("", [9.0]).errors.summary()
    text = write_results(evaluation, tmp_path, {"nearest training image": baseline})
    assert names(tmp_path) == TOGETHER | {"east", "west"}
    assert names(tmp_path / "east") == names(tmp_path / "west") == OF_A_TRACK
    assert len((tmp_path / "east" / "estimate.tum").read_text().splitlines()) == 3
    metrics = read_json(tmp_path / "metrics.json")
    assert [metrics["sequences"][name]["mean_position_m"] for name in ("east", "west")] == pytest.approx([0.1, 0.5])
    assert metrics["mean_position_m"] == pytest.approx(0.2)
    assert metrics["independent_errors"] == pytest.approx(2.0)  # within each drive all errors are equal
    assert metrics["baselines"] == {"nearest training image": baseline}
    errors, trajectory, _ = (part.splitlines() for part in without_padding(text).split("## ")[1:])
    assert [line.split(" | ")[0] for line in errors if line.startswith("| ")] == [
        "|",
        "| vmloc, east",
        "| vmloc, west",
        "| vmloc, all 2 sequences",
        "| nearest training image",
    ]
    west = next(line for line in trajectory if "west" in line)
    assert west == "| vmloc, west | 0.500 | 0.000 | – | – | – | – | – | – |"
    assert not any("nearest" in line for line in trajectory)


def test_results_record_the_corruption_and_show_it(tmp_path: Path) -> None:
    frame = random_frame()
    corruption = Corruption({"lidar": 2}, 3)
    examples = [(frame, replace(frame, cloud=None))]
    evaluation = Evaluation([track("drive", [0.1])], "vmloc", corruption=corruption, examples=examples)
    text = write_results(evaluation, tmp_path)
    assert names(tmp_path) == TOGETHER | OF_A_TRACK | {"corruption.png"}
    assert read_json(tmp_path / "metrics.json")["corruption"] == {"levels": {"lidar": 2}, "seed": 3}
    assert {row["corruption"] for row in read_csv(tmp_path / "results.csv")} == {"lidar missing, seed 3"}
    assert text.startswith("# vmloc (lidar missing, seed 3) on drive\n")


def test_every_picture_can_be_read(tmp_path: Path) -> None:
    write_results(Evaluation([track("drive", [0.1, 0.0])], "vmloc"), tmp_path)
    for path in tmp_path.glob("*.png"):
        assert cv2.imread(str(path)).std() > 1


def test_results_into_a_folder_that_cannot_be_made_are_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        write_results(Evaluation([track("drive", [0.1])], "vmloc"), tmp_path / "file")


# --- several checkpoints -----------------------------------------------------------------------------------------


def test_the_deviation_over_checkpoints_is_that_of_a_sample() -> None:
    row = mean_and_std([{"a": 1.0, "b": 5.0}, {"a": 2.0}, {"a": 6.0, "b": 5.0}])
    assert row.mean == {"a": 3.0}
    assert row.std == {"a": pytest.approx(np.sqrt((4 + 1 + 9) / 2))}
    assert mean_and_std([{"a": 1.0}]) == Row({"a": 1.0}, {})


def test_checkpoints_are_compared_by_mean_and_deviation(tmp_path: Path) -> None:
    evaluations = [
        Evaluation([track("east", [x, x]), track("west", [2 * x])], "vmloc", checkpoint=f"seed_{i}")
        for i, x in enumerate((0.1, 0.2, 0.3))
    ]
    text = write_comparison(evaluations, tmp_path)
    assert names(tmp_path) == {"metrics.json", "results.md", "results.csv", "error_cdf.png"}
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["median_position_m"] == pytest.approx(0.2)
    assert metrics["std"]["median_position_m"] == pytest.approx(0.1)
    assert metrics["sequences"]["west"]["median_position_m"] == pytest.approx(0.4)
    assert metrics["sequences"]["west"]["std"]["median_position_m"] == pytest.approx(0.2)
    assert metrics["checkpoints"]["seed_2"]["median_position_m"] == pytest.approx(0.3)
    assert "Mean ± standard deviation over 3 checkpoints." in text
    text = without_padding(text)
    assert "| vmloc, west | 1 | 0.400 ± 0.200 |" in text
    assert "| vmloc, all 2 sequences | 3 | 0.200 ± 0.100 |" in text
    assert "| seed_2 | 3 | 0.300 |" in text
    rows = {
        (row["checkpoint"], row["sequence"]): float(row["median_position_m"])
        for row in read_csv(tmp_path / "results.csv")
    }
    assert rows["seed_1", "west"] == pytest.approx(0.4)
    assert rows["mean", "east"] == pytest.approx(0.2)
    assert rows["std", "all"] == pytest.approx(0.1)
    assert len(rows) == 3 * 3 + 2 * 3


def test_shares_are_in_per_cent_and_lacking_figures_a_dash() -> None:
    text = results_tables(
        {"x": Row({"frames": 7.0, "within_5m_10deg": 0.5}, {"within_5m_10deg": 0.011, "frames": 0.0})}
    )
    assert "| x | 7 | – | – | – | – | – | – | – | – | 50.0 ± 1.1 % |" in without_padding(text)


# --- TUM ---------------------------------------------------------------------------------------------------------


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
