# SPDX-License-Identifier: Apache-2.0
"""What a trained model's answers to held-out frames say of its later errors: metrics and covariance."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.calibration import fit_inflation
from training.dataset import PreparedDataset
from training.metrics import pose_errors
from training.predict import predict
from vmloc_ros.core.checkpoint import CheckpointHeader, Uncertainty
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import prediction_covariance, total_covariance
from vmloc_ros.core.models import PoseModel, Prediction
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.uncertainty import body_errors, body_variances, fit_residual_std

# A covariance never gets smaller than 1 cm and 0.1 deg: no ground truth used here is better.
_RESIDUAL_FLOOR = np.array([0.01] * 3 + [math.radians(0.1)] * 3)


def calibrate(
    header: CheckpointHeader, model: PoseModel, data: PreparedDataset, rows: Tensor, device: torch.device
) -> CheckpointHeader:
    """The header with metrics and covariance fitted on rows of the data, best such as training has not seen.

    Raises:
        ModelError: an answer is not finite.
    """
    truth = [data.poses[i] for i in rows.tolist()]
    uncertainty = Uncertainty()
    preprocessor = Preprocessor(header.preprocess)
    prediction = predict(model, data, rows, preprocessor, header.pose_codec, device, uncertainty.samples)
    estimates = poses(prediction)
    residual_std = fit_residual_std(
        [body_errors(t, e) for t, e in zip(truth, estimates, strict=True)],
        [body_variances(e, prediction_covariance(prediction, i)) for i, e in enumerate(estimates)],
        _RESIDUAL_FLOOR,
    )
    uncertainty = replace(uncertainty, residual_std=tuple(residual_std.tolist()))
    covariances = [total_covariance(prediction, i, uncertainty) for i in range(len(truth))]
    uncertainty = replace(uncertainty, inflation=fit_inflation(truth, estimates, covariances))
    return replace(header, uncertainty=uncertainty, metrics=pose_errors(truth, estimates).summary())


def poses(prediction: Prediction) -> list[Pose]:
    """One for each row of a prediction."""
    return [Pose(p, q) for p, q in zip(prediction.positions_m, prediction.quaternions_wxyz, strict=True)]
