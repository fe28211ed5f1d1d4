# SPDX-License-Identifier: Apache-2.0
"""Covariance and confidence of systems with covariances and outlier scores of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from helpers import p_values
from rooms import CPU, TINY, prepared
from training.calibration.confidence import fit_confidence, fit_reference_features
from training.calibration.covariance import calibrate_header
from training.calibration.held_out import predict_held_out
from training.data.dataset import PreparedDataset
from training.prediction import predict
from vmloc_ros.core.checkpoint import CheckpointHeader, load_confidence, save_checkpoint
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import Frame, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import total_covariance
from vmloc_ros.core.models import ModelInput, PoseModel, Prediction
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

NUMBERED = PreprocessConfig(("image",), shortest_side=32)
NUMBERED_CODEC = PoseCodec((1e5, 2e5, 0.0), 30.0, (1.0, 0.0, 0.0, 0.0))


class Solves(PoseModel):
    """Position errors are three times, rotation errors twice as large as its covariances; has outlier scores.

    A frame's image encodes its number, which seeds all random draws.

    Args:
        lost_every: every so many frames the estimate is far off, with large outlier scores.
        reports_lost: whether these are reported as lost.
    """

    needs_geometry = True

    def __init__(self, lost_every: int = 0, reports_lost: bool = True) -> None:
        super().__init__(("image",))
        self.lost_every, self.reports_lost = lost_every, reports_lost

    def modality_features(self, batch: ModelInput) -> dict[str, torch.Tensor]:
        drawn = [np.random.default_rng([8, number]).normal(size=5) for number in self.numbers(batch)]
        return {"image": torch.from_numpy(np.stack(drawn)).float()}

    def numbers(self, batch: ModelInput) -> list[int]:
        assert batch.measured is not None
        digits = batch.measured["image"][:, :2, 0, 0].long()
        return (digits[:, 0] + 200 * digits[:, 1]).tolist()

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        numbers = self.numbers(batch)
        drawn = [numbered(number) for number in numbers]
        own = np.stack([covariance for _, _, covariance in drawn])
        outlier_scores = np.stack([np.random.default_rng([9, number]).exponential([0.1, 1.0]) for number in numbers])
        poses = [estimate for _, estimate, _ in drawn]
        lost = np.array([self.lost_every > 0 and number % self.lost_every == 0 for number in numbers])
        positions_m = np.stack([pose.position_m for pose in poses]) + 100.0 * lost[:, None]
        return Prediction(
            positions_m,
            np.stack([pose.quaternion_wxyz for pose in poses]),
            covariances=own,
            features=self.modality_features(batch),
            outlier_scores=outlier_scores + 50.0 * lost[:, None],
            lost=lost & self.reports_lost,
        )


def numbered(number: int) -> tuple[Pose, Pose, np.ndarray]:
    """Truth, estimate and covariance."""
    rng = np.random.default_rng([7, number])
    truth = Pose.from_xyz_rpy(rng.uniform(0, 50, 3) + NUMBERED_CODEC.origin_m, rng.normal(0, [0.1, 0.1, 2.0]))
    mixing = rng.normal(size=(6, 6)) * np.repeat([0.05, 0.01], 3)[:, None]
    covariance = mixing @ mixing.T + np.diag(np.repeat([0.02, 0.004], 3) ** 2)
    # Cholesky's factor is one; the signs of the usual one's singular vectors, and so the draws, are LAPACK's choice.
    error = np.repeat([3.0, 2.0], 3) * rng.multivariate_normal(np.zeros(6), covariance, method="cholesky")
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_rotvec(error[3:]).as_matrix() @ truth.rotation
    turned[:3, 3] = truth.position_m + error[:3]
    return truth, Pose.from_matrix(turned), covariance


def numbered_data(first: int, count: int) -> PreparedDataset:
    samples = []
    for number in range(first, first + count):
        image = np.zeros((32, 32, 3), np.uint8)
        image[..., 0], image[..., 1] = number % 200, number // 200
        samples.append(Sample(Frame(number * 100_000_000, image), numbered(number)[0]))
    return prepared(samples, NUMBERED)


@pytest.fixture(scope="module")
def calibrated() -> tuple[CheckpointHeader, PreparedDataset]:
    held_out = numbered_data(0, 500)
    header = CheckpointHeader(TINY, NUMBERED, NUMBERED_CODEC, "map", "base_link")
    return calibrate_header(
        header, held_out, predict_held_out(header, Solves(), held_out, torch.arange(500), CPU)
    ), held_out


def test_a_solvers_covariance_is_scaled_until_its_ellipsoids_hold_the_nominal_share(
    calibrated: tuple[CheckpointHeader, PreparedDataset],
) -> None:
    """On other frames of the kind: 95 % in position and in rotation, from covariances three and two times too small."""
    header, _ = calibrated
    other = numbered_data(500, 500)
    prediction = predict(Solves(), other, torch.arange(500), Preprocessor(NUMBERED), NUMBERED_CODEC, CPU)
    inside = np.zeros(2)
    for row in range(500):
        truth, estimate, _ = numbered(500 + row)
        covariance = total_covariance(prediction, row, header.uncertainty, ("image",))
        position = truth.position_m - estimate.position_m
        rotation = Rotation.from_matrix(truth.rotation @ estimate.rotation.T).as_rotvec()
        for part, error in enumerate((position, rotation)):
            block = covariance[3 * part : 3 * part + 3, 3 * part : 3 * part + 3]
            inside[part] += error @ np.linalg.solve(block, error) < 7.815
    assert (np.abs(inside / 500 - 0.95) < 0.07).all(), inside / 500  # five standard errors of both draws
    np.testing.assert_allclose(header.uncertainty.inflation, [3.0, 2.0], rtol=0.15)


@pytest.mark.parametrize("reports_lost", [True, False])
def test_lost_frames_and_gross_errors_do_not_change_covariance_and_confidence(reports_lost: bool) -> None:
    """A fifth of the frames is 170 m off; the fit is that of the other frames, reported as lost or not."""
    header = CheckpointHeader(TINY, NUMBERED, NUMBERED_CODEC, "map", "base_link")
    data, kept = numbered_data(0, 100), torch.tensor([row for row in range(100) if row % 5])
    references = fit_reference_features(header, Solves(), numbered_data(1000, 60), torch.arange(60), CPU)
    with_lost, without = (
        (
            calibrate_header(header, data, predict_held_out(header, model, data, rows, CPU)).uncertainty,
            fit_confidence(references, data, predict_held_out(header, model, data, rows, CPU, references)),
        )
        for model, rows in ((Solves(lost_every=5, reports_lost=reports_lost), torch.arange(100)), (Solves(), kept))
    )
    assert with_lost[0] == without[0]
    assert with_lost[1] is not None
    assert without[1] is not None
    for one, other in zip(
        with_lost[1].null_distributions["image",], without[1].null_distributions["image",], strict=True
    ):
        np.testing.assert_array_equal(one.quantiles, other.quantiles)
        assert one.decay == other.decay
    # Fewer than 50 that are found are too few.
    assert (
        fit_confidence(
            references, data, predict_held_out(header, Solves(lost_every=2), data, torch.arange(98), CPU, references)
        )
        is None
    )


def test_a_solvers_outlier_scores_are_part_of_the_confidence_and_of_the_checkpoint(
    calibrated: tuple[CheckpointHeader, PreparedDataset], tmp_path: Path
) -> None:
    header, held_out = calibrated
    model = Solves()
    references = fit_reference_features(header, model, numbered_data(1000, 200), torch.arange(200), CPU)
    confidence = fit_confidence(
        references, held_out, predict_held_out(header, model, held_out, torch.arange(500), CPU, references)
    )
    assert confidence is not None
    assert len(confidence.null_distributions["image",]) == 2 + 2 + 1  # of the sensor, of the solver, of all
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, header, model.state_dict(), confidence)
    loaded = load_confidence(path)
    assert loaded is not None
    other = predict(model, numbered_data(2000, 400), torch.arange(400), Preprocessor(NUMBERED), NUMBERED_CODEC, CPU)
    seen = {"image": other.features["image"].numpy()}
    poses = other.positions_m, other.quaternions_wxyz
    found = p_values(loaded, ("image",), seen, *poses, other.outlier_scores)
    np.testing.assert_array_equal(found, p_values(confidence, ("image",), seen, *poses, other.outlier_scores))
    assert abs(np.mean(found < 0.2) - 0.2) < 0.13  # uniform, within five standard errors of both draws
    for score, typical in ((0, 0.1), (1, 1.0)):
        neg_log_p = other.outlier_scores.copy()
        neg_log_p[:, score] = 12 * typical
        assert float(np.median(p_values(loaded, ("image",), seen, *poses, neg_log_p))) < 0.01
    with pytest.raises(ModelError, match=r"rests on 4 outlier scores, this .* gives 3: fit it again with `vmloc calib"):
        p_values(loaded, ("image",), seen, *poses, other.outlier_scores[:, :1])
