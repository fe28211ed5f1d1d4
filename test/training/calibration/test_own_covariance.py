# SPDX-License-Identifier: Apache-2.0
"""Covariance and confidence of systems that bring their own: scaled and judged on held-out frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from helpers import p_values
from rooms import CPU, TINY, prepared
from training.calibration.confidence import fit_confidence, remember
from training.calibration.covariance import calibrate
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
    """Errs by three times what its covariances say in position, twice in rotation; tells what it thinks of an answer.

    A frame's picture holds its number, from which all else is drawn.
    """

    needs_geometry = True

    def __init__(self, lost_every: int = 0, tells: bool = True) -> None:
        super().__init__(("image",))
        self.lost_every = lost_every  # every so-manieth frame is lost: answered far off, and with odd cues
        self.tells = tells

    def modality_features(self, batch: ModelInput) -> dict[str, torch.Tensor]:
        drawn = [np.random.default_rng([8, number]).normal(size=5) for number in self.numbers(batch)]
        return {"image": torch.from_numpy(np.stack(drawn)).float()}

    def numbers(self, batch: ModelInput) -> list[int]:
        assert batch.measured is not None
        digits = batch.measured["image"][:, :2, 0, 0].long()
        return (digits[:, 0] + 200 * digits[:, 1]).tolist()

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        numbers = self.numbers(batch)
        answers = [numbered(number) for number in numbers]
        own = np.stack([covariance for _, _, covariance in answers])
        outlier_scores = np.stack([np.random.default_rng([9, number]).exponential([0.1, 1.0]) for number in numbers])
        poses = [answer for _, answer, _ in answers]
        lost = np.array([self.lost_every > 0 and number % self.lost_every == 0 for number in numbers])
        positions_m = np.stack([pose.position_m for pose in poses]) + 100.0 * lost[:, None]
        return Prediction(
            positions_m,
            np.stack([pose.quaternion_wxyz for pose in poses]),
            covariances=own,
            features=self.modality_features(batch),
            outlier_scores=outlier_scores + 50.0 * lost[:, None],
            lost=lost & self.tells,
        )


def numbered(number: int) -> tuple[Pose, Pose, np.ndarray]:
    """Truth, answer and covariance."""
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
    return calibrate(header, held_out, predict_held_out(header, Solves(), held_out, torch.arange(500), CPU)), held_out


def test_a_solvers_covariance_is_scaled_until_its_ellipsoids_hold_what_they_say(
    calibrated: tuple[CheckpointHeader, PreparedDataset],
) -> None:
    """On other frames of the kind: 95 % in position and in rotation, from covariances three and two times too small."""
    header, _ = calibrated
    other = numbered_data(500, 500)
    prediction = predict(Solves(), other, torch.arange(500), Preprocessor(NUMBERED), NUMBERED_CODEC, CPU)
    inside = np.zeros(2)
    for row in range(500):
        truth, answer, _ = numbered(500 + row)
        covariance = total_covariance(prediction, row, header.uncertainty, ("image",))
        position = truth.position_m - answer.position_m
        rotation = Rotation.from_matrix(truth.rotation @ answer.rotation.T).as_rotvec()
        for part, error in enumerate((position, rotation)):
            block = covariance[3 * part : 3 * part + 3, 3 * part : 3 * part + 3]
            inside[part] += error @ np.linalg.solve(block, error) < 7.815
    assert (np.abs(inside / 500 - 0.95) < 0.07).all(), inside / 500  # five standard errors of both draws
    np.testing.assert_allclose(header.uncertainty.inflation, [3.0, 2.0], rtol=0.15)


@pytest.mark.parametrize("tells", [True, False])
def test_lost_and_grossly_wrong_frames_have_no_part_in_covariance_and_confidence(tells: bool) -> None:
    """A fifth of the frames, 170 m off, whether the system knows it or not: what is fitted is what the others give."""
    header = CheckpointHeader(TINY, NUMBERED, NUMBERED_CODEC, "map", "base_link")
    data, kept = numbered_data(0, 100), torch.tensor([row for row in range(100) if row % 5])
    memories = remember(header, Solves(), numbered_data(1000, 60), torch.arange(60), CPU)
    with_lost, without = (
        (
            calibrate(header, data, predict_held_out(header, model, data, rows, CPU)).uncertainty,
            fit_confidence(memories, data, predict_held_out(header, model, data, rows, CPU, memories)),
        )
        for model, rows in ((Solves(lost_every=5, tells=tells), torch.arange(100)), (Solves(), kept))
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
            memories, data, predict_held_out(header, Solves(lost_every=2), data, torch.arange(98), CPU, memories)
        )
        is None
    )


def test_a_solvers_own_doubts_are_part_of_the_confidence_and_of_the_checkpoint(
    calibrated: tuple[CheckpointHeader, PreparedDataset], tmp_path: Path
) -> None:
    header, held_out = calibrated
    model = Solves()
    memories = remember(header, model, numbered_data(1000, 200), torch.arange(200), CPU)
    confidence = fit_confidence(
        memories, held_out, predict_held_out(header, model, held_out, torch.arange(500), CPU, memories)
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
    for cue, typical in ((0, 0.1), (1, 1.0)):
        neg_log_p = other.outlier_scores.copy()
        neg_log_p[:, cue] = 12 * typical
        assert float(np.median(p_values(loaded, ("image",), seen, *poses, neg_log_p))) < 0.01
    with pytest.raises(ModelError, match=r"rests on 4 outlier scores, this .* gives 3: fit it again with `vmloc calib"):
        p_values(loaded, ("image",), seen, *poses, other.outlier_scores[:, :1])
