# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from helpers import ListSource, random_frame
from training.calibration.covariance import calibrate_header
from training.calibration.held_out import predict_held_out
from training.data.dataset import PreparedDataset, prepare_dataset
from training.evaluation.consistency import (
    calibration_summary,
)
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import ModelConfig, ModelInput, RegressionModel
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor


class Reader(RegressionModel):
    """Reads its position error from the image or, without an image, from the depth image."""

    SCALE_M: ClassVar[dict[str, float]] = {"image": 0.2, "depth": 5.0}

    def forward(self, batch: ModelInput) -> torch.Tensor:
        name = "image" if bool(batch.present["image"].all()) else "depth"
        return batch.tensors[name][:, 0, :1, :6].flatten(1) * self.SCALE_M[name]


PREPROCESS = PreprocessConfig(modalities=("image", "depth"), shortest_side=32)
CPU = torch.device("cpu")


def still_data(count: int, without: str = "") -> PreparedDataset:
    """A robot that stands still before noise; every frame but each third lacks a sensor, if one is named."""
    frames = [
        random_frame(i, (32, 40), [name for name in ("image", "depth") if name != without or i % 3 == 0])
        for i in range(count)
    ]
    samples = [Sample(frame, Pose.identity()) for frame in frames]
    return prepare_dataset([ListSource(samples)], Preprocessor(PREPROCESS), progress=False)


def reader_header() -> CheckpointHeader:
    codec = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
    return CheckpointHeader(ModelConfig(), PREPROCESS, codec, "map", "camera")


def calibrated(data: PreparedDataset, rows: torch.Tensor) -> CheckpointHeader:
    header = reader_header()
    return calibrate_header(header, data, predict_held_out(header, Reader(("image", "depth")), data, rows, CPU))


def shown_std(data: PreparedDataset, name: str, rows: torch.Tensor) -> np.ndarray:
    """Root mean square ``(3,)`` of the position errors that the model reads, from the prepared data alone."""
    tensors = Preprocessor(PREPROCESS).normalise(data.batch(rows, CPU)[0])
    values = tensors[name][:, 0, 0, :3].numpy() * Reader.SCALE_M[name]
    return np.sqrt(np.mean(values**2, axis=0))


def test_a_covariance_from_a_small_effective_sample_size_is_called_a_guess(caplog: pytest.LogCaptureFixture) -> None:
    header = calibrated(still_data(60), torch.arange(60))
    assert 20 < header.metrics["independent_errors"] <= 60
    assert not caplog.text
    header = calibrated(still_data(10), torch.arange(10))
    assert header.metrics["independent_errors"] <= 10
    assert "the covariance is a guess: it is fitted to 10 frames, whose errors are so correlated" in caplog.text
    assert "fit it to more and other drives (vmloc calibrate CHECKPOINT --data DRIVES --out NEW)" in caplog.text


def test_residuals_are_fitted_for_every_set_of_sensors() -> None:
    data, rows = still_data(100), torch.arange(100)
    uncertainty = calibrate_header(
        reader_header(), data, predict_held_out(reader_header(), Reader(("image", "depth")), data, rows, CPU)
    ).uncertainty
    assert {fitted.modalities for fitted in uncertainty.missing} == {("image",), ("depth",)}
    for names, shown in ((("image", "depth"), "image"), (("image",), "image"), (("depth",), "depth")):
        # The rotation read from the same frame turns the error into the body: of no effect on its length.
        fitted = np.linalg.norm(uncertainty.residuals(names).residual_std[:3])
        assert fitted == pytest.approx(np.linalg.norm(shown_std(data, shown, rows)), rel=1e-3)


def test_covariances_are_consistent_also_with_a_sensor_missing() -> None:
    """Errors are uniform in a box: a variance that is right gives a NEES of 3, with a standard error of 0.2."""
    header = calibrate_header(
        reader_header(),
        still_data(150),
        predict_held_out(reader_header(), Reader(("image", "depth")), still_data(150), torch.arange(150), CPU),
    )
    localizer = Localizer(header, Reader(("image", "depth")))
    for names in (("image", "depth"), ("depth",)):
        estimates = [localizer.localize(random_frame(1000 + i, (32, 40), names)) for i in range(60)]
        summary = calibration_summary([Pose.identity()] * 60, estimates)
        assert summary["nees_position"] == pytest.approx(3, abs=0.6)
        assert summary["coverage95_position"] > 0.9


def test_rows_without_a_sensor_are_used_for_the_sets_that_they_have() -> None:
    data, rows = still_data(90, without="depth"), torch.arange(90)
    uncertainty = calibrate_header(
        reader_header(), data, predict_held_out(reader_header(), Reader(("image", "depth")), data, rows, CPU)
    ).uncertainty
    std = shown_std(data, "depth", rows[::3].clone())
    fitted = uncertainty.residuals(("depth",)).residual_std[:3]
    assert np.linalg.norm(fitted) == pytest.approx(np.linalg.norm(std), rel=1e-3)


def test_sets_of_sensors_that_do_not_occur_are_not_fitted() -> None:
    frames = [Sample(random_frame(i, (32, 40), ("image",)), Pose.identity()) for i in range(30)]
    frames.append(Sample(random_frame(30, (32, 40), ("image", "depth")), Pose.identity()))
    data = prepare_dataset([ListSource(frames)], Preprocessor(PREPROCESS), progress=False)
    header = calibrate_header(
        reader_header(),
        data,
        predict_held_out(reader_header(), Reader(("image", "depth")), data, torch.arange(30), CPU),
    )
    assert [fitted.modalities for fitted in header.uncertainty.missing] == [("image",)]
    assert header.uncertainty.residuals(("depth",)).residual_std == header.uncertainty.residual_std
