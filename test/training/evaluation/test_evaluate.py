# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from helpers import ListSource, random_frame, yaw_pose
from training.evaluation.corruption import Corruption
from training.evaluation.evaluate import warn_of_other_times
from training.evaluation.retrieval import nearest_image_errors
from training.evaluation.tracks import EvaluatedTrack, evaluate
from training.testing import write_random_checkpoint
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Estimate, Sample
from vmloc_ros.core.localizer import Localizer


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    path = tmp_path_factory.mktemp("evaluate") / "model.safetensors"
    write_random_checkpoint(path)
    return Localizer.load(path, "cpu")


def samples(count: int, start: int = 0) -> list[Sample]:
    return [Sample(random_frame(start + i), yaw_pose(float(i), 0.5 * i, 3.0 * i)) for i in range(count)]


# --- evaluate ----------------------------------------------------------------------------------------------------


def test_every_frame_of_every_source_is_localized_in_order(localizer: Localizer) -> None:
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


def test_poses_of_another_body_are_rejected_instead_of_compared(localizer: Localizer) -> None:
    source = ListSource(samples(1), "garden", body_frame="camera")
    with pytest.raises(DataError, match="garden has poses of 'camera', the checkpoint predicts 'base_link'"):
        evaluate(localizer, [source], progress=False)


def test_frames_with_only_pictures_of_an_unknown_camera_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An uncalibrated camera ends no evaluation: the lidar answers where there is one."""
    write_random_checkpoint(tmp_path / "dense.safetensors", system="vmloc_dense", backbone="resnet18")
    shown = [replace(x, frame=replace(x.frame, camera=None)) for x in samples(3)]
    shown[1] = replace(shown[1], frame=replace(shown[1].frame, cloud=None))
    found = evaluate(Localizer.load(tmp_path / "dense.safetensors", "cpu"), [ListSource(shown)], progress=False)
    assert [estimate.stamp_ns for estimate in found.estimates] == [shown[i].frame.stamp_ns for i in (0, 2)]
    assert {estimate.modalities for estimate in found.estimates} == {("lidar",)}
    assert "1 frames skipped: no input of the model is left since their camera is not known" in caplog.text


def test_no_frames_are_an_error(localizer: Localizer) -> None:
    for sources in ([], [ListSource([])]):
        with pytest.raises(DataError, match="there is no frame to evaluate"):
            evaluate(localizer, sources, progress=False)


# --- sequences ---------------------------------------------------------------------------------------------------


def test_each_source_is_a_track_of_its_own_with_a_name_fit_for_a_folder(localizer: Localizer) -> None:
    names = ["a/b", "a b", "..", "a/b", "ü-1.0"]
    sources = [ListSource(samples(1 + i, start=10 * i), name) for i, name in enumerate(names)]
    result = evaluate(localizer, [*sources, ListSource([], "empty")], progress=False)
    assert [track.name for track in result.tracks] == ["a_b", "a_b_2", "data", "a_b_3", "ü-1.0"]
    assert [len(track.truth) for track in result.tracks] == [1, 2, 3, 4, 5]
    assert [track.stamps_ns for track in result.tracks] == [source.stamps_ns() for source in sources]
    assert result.system == result.name == "vmloc"


def track_at(seconds: list[float]) -> EvaluatedTrack:
    estimates = [Estimate(round(s * 1e9), yaw_pose(s), np.eye(6), ("image",)) for s in seconds]
    return EvaluatedTrack("drive", [estimate.map_from_body for estimate in estimates], estimates)


@pytest.mark.parametrize(
    ("seconds", "lengths"),
    [
        ([0.0], [1]),
        ([0.0, 0.1, 0.2, 1.5, 1.6, 9.0], [3, 2, 1]),
        ([0.0, 0.1, 0.2, 1.1, 1.2], [5]),  # a second without an estimate is no pause
        ([0.0, 2.0, 4.0, 8.0, 10.0], [5]),  # every 2 s: it is the step that is long
        ([0.0, 2.0, 4.0, 6.0, 60.0, 62.0], [4, 2]),
    ],
)
def test_a_track_is_in_parts_where_the_recording_paused(seconds: list[float], lengths: list[int]) -> None:
    runs = track_at(seconds).runs()
    assert [len(run.truth) for run in runs] == lengths
    assert [stamp for run in runs for stamp in run.stamps_ns] == track_at(seconds).stamps_ns


def test_examples_of_corrupted_frames_are_spread_over_all_sources(localizer: Localizer) -> None:
    sources = [ListSource(samples(5)), ListSource(samples(7, start=20))]
    assert not evaluate(localizer, sources, progress=False).examples
    examples = evaluate(localizer, sources, progress=False, corruption=Corruption({"image": 1, "lidar": 2})).examples
    clean = [sample.frame for source in sources for sample in source]
    assert [before for before, _ in examples] == [clean[i] for i in (0, 3, 6, 9)]
    for before, after in examples:
        assert (before.image != after.image).any()
        assert after.cloud is None
        assert after.stamp_ns == before.stamp_ns


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


def test_the_estimate_is_the_pose_of_the_most_similar_image(weights: str) -> None:
    known = samples(5)
    image = known[3].frame.image.copy()
    image[:4] = 0  # a strip is covered
    query = Sample(random_frame(99), yaw_pose(3.0, 1.5, 9.0))
    object.__setattr__(query.frame, "image", image)
    errors = nearest_image_errors([ListSource(known)], [ListSource([query])], "squeezenet1_1", weights, progress=False)
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


@pytest.mark.parametrize(("own", "warns"), [(None, True), ({"unit": "us", "field": "time"}, False)])
def test_scans_whose_times_are_read_otherwise_than_in_training_are_warned_of(
    own: dict[str, str] | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trained = {
        "field": "t", "type": "uint32", "unit": "ns", "clock": "header", "sweep_s": 0.1, "period_s": 0.1,
        "header_at": 0.0,
    }  # fmt: skip
    recording = ListSource([], "drive")
    recording.readings = {"lidar_times": None if own is None else trained | own}
    warn_of_other_times({"lidar_times": trained}, [recording])
    assert ("drive: points' times: none, other than in training" in caplog.text) == warns
    caplog.clear()
    warn_of_other_times({}, [recording])
    warn_of_other_times({"lidar_times": trained}, [ListSource([], "images")])
    assert not caplog.records
