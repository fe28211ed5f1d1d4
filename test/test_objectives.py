# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

import helpers  # noqa: F401 (one thread for torch)
from training.config import ObjectiveConfig
from training.objectives import build_objective
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models import ModelInput

EMPTY = ModelInput({}, {})
WEIGHTS = ObjectiveConfig(beta=-1.0, gamma=0.5)


class Answers(nn.Module):
    """A system that gives the answers it is made with, whatever it sees."""

    clip_length = 3

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = nn.Parameter(answers)

    def forward(self, batch: ModelInput) -> Tensor:
        return self.answers


class RunningMean(Answers):
    """Reads clips: each frame's answer is the mean of its own and those before it in the clip."""

    def frame_features(self, batch: ModelInput) -> Tensor:
        return self.answers

    def decode_clip(self, features: Tensor) -> Tensor:
        return features.cumsum(dim=1) / torch.arange(1, features.shape[1] + 1).view(1, -1, 1)


class QuaternionAnswers(Answers):
    def position_and_quaternion(self, batch: ModelInput) -> tuple[Tensor, Tensor]:
        return self.answers[:, :3], nn.functional.normalize(self.answers[:, 3:], dim=1)


def vectors(count: int, seed: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def pose_loss(error: np.ndarray, beta: float = -1.0, gamma: float = 0.5) -> float:
    """Eq. 11, mean over the rows of ``(N, 6)`` errors."""
    error = np.abs(error).reshape(-1, 6)
    return float(np.mean(error[:, :3].sum(1) * np.exp(-beta) + beta + error[:, 3:].sum(1) * np.exp(-gamma) + gamma))


@pytest.mark.parametrize("system", ["attention_vmloc", "atloc", "hourglass"])
def test_systems_of_single_frames_minimise_the_mean_of_equation_11(system: str) -> None:
    answers, target = vectors(5, 0), vectors(5, 1)
    loss = build_objective(system, WEIGHTS)(Answers(answers), EMPTY, target)
    assert loss.item() == pytest.approx(pose_loss((answers - target).numpy()), rel=1e-6)


def test_vidloc_counts_every_frame_of_its_clip_and_reads_no_other_clip() -> None:
    answers, target = vectors(6, 0), vectors(6, 1)
    read = np.concatenate(
        [np.cumsum(clip, axis=0) / np.arange(1, 4)[:, None] for clip in (answers[:3].numpy(), answers[3:].numpy())]
    )
    loss = build_objective("vidloc", WEIGHTS)(RunningMean(answers), EMPTY, target)
    assert loss.item() == pytest.approx(pose_loss(read - target.numpy()), rel=1e-6)


# --- MapNet ------------------------------------------------------------------------------------------------------


def test_mapnet_adds_the_loss_of_the_steps_within_each_clip() -> None:
    answers, target = vectors(6, 0), vectors(6, 1)
    error = (answers - target).numpy()
    steps = np.stack([error[1] - error[0], error[2] - error[1], error[4] - error[3], error[5] - error[4]])
    loss = build_objective("mapnet", WEIGHTS)(Answers(answers), EMPTY, target)
    assert loss.item() == pytest.approx(pose_loss(error) + pose_loss(steps), rel=1e-6)


def test_mapnets_steps_are_free_of_loss_when_all_of_a_clip_is_off_by_the_same() -> None:
    target = vectors(6, 1)
    offset = torch.tensor([0.5, -0.25, 1.0, 0.0, 0.125, -0.5])
    loss = build_objective("mapnet", WEIGHTS)(Answers(target + offset), EMPTY, target)
    absolute, steps = pose_loss(offset.numpy()), pose_loss(np.zeros(6))
    assert loss.item() == pytest.approx(absolute + steps, rel=1e-5)


def test_mapnet_weighs_frames_and_steps_by_weights_of_their_own() -> None:
    """The derivative of e exp(-w) + w is 1 - e exp(-w), each with its own error e."""
    answers, target = vectors(6, 0), vectors(6, 1)
    objective = build_objective("mapnet", WEIGHTS)
    objective(Answers(answers), EMPTY, target).backward()
    error = (answers - target).numpy()
    steps = np.diff(error.reshape(2, 3, 6), axis=1).reshape(4, 6)
    expected = []
    for e in (error, steps):
        expected += [1 - np.abs(e[:, :3]).sum(1).mean() * np.exp(1), 1 - np.abs(e[:, 3:]).sum(1).mean() * np.exp(-0.5)]
    gradients = [parameter.grad.item() for parameter in objective.parameters()]
    np.testing.assert_allclose(sorted(gradients), sorted(expected), rtol=1e-5)


# --- PoseNet+ ----------------------------------------------------------------------------------------------------


def homoscedastic(answers: np.ndarray, target: np.ndarray, s_x: float, s_q: float) -> float:
    """Kendall and Cipolla 2017, with scipy's quaternions."""
    position = np.abs(answers[:, :3] - target[:, :3]).sum(1)
    quaternion = answers[:, 3:] / np.linalg.norm(answers[:, 3:], axis=1, keepdims=True)
    truth = Rotation.from_rotvec(2 * target[:, 3:]).as_quat()[:, [3, 0, 1, 2]]
    rotation = np.minimum(np.abs(quaternion - truth).sum(1), np.abs(quaternion + truth).sum(1))
    return float(np.mean(position * np.exp(-s_x) + s_x + rotation * np.exp(-s_q) + s_q))


def quaternion_answers(count: int) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(4))


def test_posenet_plus_compares_unit_quaternions_in_the_hemisphere_where_they_agree() -> None:
    answers, target = quaternion_answers(40), vectors(40, 1)
    other_sign = answers * torch.tensor([1.0, 1, 1, -1, -1, -1, -1])
    expected = homoscedastic(answers.double().numpy(), target.double().numpy(), -1.0, 0.5)
    objective = build_objective("posenet_plus", WEIGHTS)
    for given in (answers, other_sign):
        assert objective(QuaternionAnswers(given), EMPTY, target).item() == pytest.approx(expected, rel=1e-5)


def test_posenet_plus_crosses_the_half_turn_without_a_jump() -> None:
    """Rotations just this and just that side of 180 degrees are neighbours; their logarithms are far apart."""
    target = torch.zeros(1, 6)
    target[0, 3] = np.pi / 2 - 0.001
    answer = torch.tensor([[0.0, 0, 0, np.cos(np.pi / 2 + 0.001), np.sin(np.pi / 2 + 0.001), 0, 0]])
    loss = build_objective("posenet_plus", ObjectiveConfig(beta=0.0, gamma=0.0))(
        QuaternionAnswers(answer), EMPTY, target
    )
    assert loss.item() == pytest.approx(0.002, rel=0.01)


def test_posenet_plus_learns_its_two_weights_from_where_the_configuration_puts_them() -> None:
    answers, target = quaternion_answers(8), vectors(8, 1)
    objective = build_objective("posenet_plus", WEIGHTS)
    assert sorted(parameter.item() for parameter in objective.parameters()) == [-1.0, 0.5]
    objective(QuaternionAnswers(answers), EMPTY, target).backward()
    step = 1e-4
    numbers = answers.double().numpy(), target.double().numpy()
    for name, moved in (("s_x", (step, 0)), ("s_q", (0, step))):
        up = homoscedastic(*numbers, -1.0 + moved[0], 0.5 + moved[1])
        down = homoscedastic(*numbers, -1.0 - moved[0], 0.5 - moved[1])
        assert dict(objective.named_parameters())[name].grad.item() == pytest.approx((up - down) / 2 / step, rel=1e-4)


# --- all ---------------------------------------------------------------------------------------------------------


def test_a_system_that_is_not_trained_by_gradients_has_none() -> None:
    with pytest.raises(ModelError, match="model 'nearest' has no objective; those that have: atloc, "):
        build_objective("nearest", ObjectiveConfig())
