# SPDX-License-Identifier: Apache-2.0
"""Objectives of the systems that regress the pose."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.objectives.base import BalanceConfig, Objective, PoseLoss, Terms
from vmloc_ros.core.models import ClipModel, ModelInput, RegressionModel
from vmloc_ros.core.models.baselines import MapNet, PoseNetPlus
from vmloc_ros.core.models.rotation import quaternion_exp


class PoseObjective(Objective):
    """L_p (VMLoc Eq. 11) of single frames, mean over the batch."""

    def __init__(self, config: BalanceConfig) -> None:
        super().__init__()
        self.pose_loss = PoseLoss(config.beta, config.gamma)

    def terms(self, model: RegressionModel, batch: ModelInput, target: Tensor) -> Terms:
        return {"loss": self.pose_loss(model(batch), target).mean()}


class ClipObjective(PoseObjective):
    """L_p of every frame of a clip, mean over the batch (Clark et al. 2017)."""

    def terms(self, model: ClipModel, batch: ModelInput, target: Tensor) -> Terms:
        vectors = model.decode_clip(_clips(model.frame_features(batch), model.clip_length))
        return {"loss": self.pose_loss(vectors.flatten(0, 1), target).mean()}


class RelativePoseObjective(Objective):
    """L_p of the frames plus L_p of the relative poses of successive frames of a clip (Brahmbhatt et al. 2018).

    The relative pose of frames i and j is the difference of their pose vectors,
    ``v_ij = (p_j - p_i, log q_j - log q_i)``. Its loss has balance weights of its own.
    """

    def __init__(self, config: BalanceConfig) -> None:
        super().__init__()
        self.absolute_loss = PoseLoss(config.beta, config.gamma)
        self.relative_loss = PoseLoss(config.beta, config.gamma)

    def terms(self, model: MapNet, batch: ModelInput, target: Tensor) -> Terms:
        vectors = model(batch)
        steps, true_steps = (_clips(x, model.clip_length).diff(dim=1) for x in (vectors, target))
        absolute, relative = self.absolute_loss(vectors, target).mean(), self.relative_loss(steps, true_steps).mean()
        return {"loss": absolute + relative, "absolute": absolute.detach(), "relative": relative.detach()}


class HomoscedasticObjective(Objective):
    """Learned homoscedastic weights on position and unit quaternion (Kendall and Cipolla 2017).

    ``|x - x*|_1 exp(-s_x) + s_x + |q - q*|_1 exp(-s_q) + s_q``, with q or -q, whichever is nearer to q*. The
    initial weights are the configuration's ``beta`` and ``gamma``; the paper's, for positions in metres, are 0 and -3.
    """

    def __init__(self, config: BalanceConfig) -> None:
        super().__init__()
        self.s_x = nn.Parameter(torch.tensor(config.beta))
        self.s_q = nn.Parameter(torch.tensor(config.gamma))

    def terms(self, model: PoseNetPlus, batch: ModelInput, target: Tensor) -> Terms:
        position, quaternion = model.position_and_quaternion(batch)
        true_quaternion = quaternion_exp(target[:, 3:])
        position_error = (position - target[:, :3]).abs().sum(dim=1)
        rotation_error = torch.minimum(
            (quaternion - true_quaternion).abs().sum(dim=1), (quaternion + true_quaternion).abs().sum(dim=1)
        )
        weighted = position_error * torch.exp(-self.s_x) + rotation_error * torch.exp(-self.s_q)
        return {"loss": weighted.mean() + self.s_x + self.s_q}


def _clips(frames: Tensor, length: int) -> Tensor:
    """Frames ``(N * length, F)`` as clips ``(N, length, F)``."""
    return frames.unflatten(0, (-1, length))
