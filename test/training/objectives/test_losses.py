# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import helpers  # noqa: F401 (one thread for torch)
from training.objectives.base import PoseLoss
from vmloc_ros.core.geometry import Pose, quaternion_log

pytestmark = pytest.mark.numeric


def test_pose_loss_is_equation_11() -> None:
    loss = PoseLoss(beta=-3.0, gamma=0.5)
    predicted = torch.tensor([[1.0, 2.0, 3.0, 0.1, 0.2, 0.3]])
    target = torch.tensor([[0.0, 4.0, 2.5, 0.0, 0.0, 0.5]])
    expected = 3.5 * math.exp(3.0) - 3.0 + 0.5 * math.exp(-0.5) + 0.5
    assert loss(predicted, target).item() == pytest.approx(expected, rel=1e-6)


def test_pose_loss_broadcasts_samples_over_the_batch() -> None:
    loss = PoseLoss()
    predicted, target = torch.randn(5, 3, 6), torch.randn(3, 6)
    together = loss(predicted, target)
    assert together.shape == (5, 3)
    for i in range(5):
        torch.testing.assert_close(together[i], loss(predicted[i], target))


def test_balance_weights_are_learnable_and_settle_at_the_logarithm_of_their_error() -> None:
    """d/d beta (e exp(-beta) + beta) = 0 at beta = log e."""
    error = torch.tensor([[0.4, 0.0, 0.3, 0.02, 0.01, 0.0]])
    loss = PoseLoss(beta=math.log(0.7), gamma=math.log(0.03))
    loss(error, torch.zeros(1, 6)).sum().backward()
    assert loss.beta.grad.item() == pytest.approx(0.0, abs=1e-5)
    assert loss.gamma.grad.item() == pytest.approx(0.0, abs=1e-5)
    loss = PoseLoss(beta=0.0, gamma=0.0)
    loss(error, torch.zeros(1, 6)).sum().backward()
    assert loss.beta.grad.item() == pytest.approx(0.3)
    assert loss.gamma.grad.item() == pytest.approx(0.97)


def test_half_turns_have_a_logarithm_that_is_not_zero() -> None:
    """w = 0: the division in the authors' code gives zeros here."""
    for axis in np.eye(3):
        half_turn = Pose(np.zeros(3), np.array([0.0, *axis]))
        np.testing.assert_allclose(quaternion_log(half_turn.quaternion_wxyz), axis * np.pi / 2)
