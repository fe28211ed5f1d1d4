# SPDX-License-Identifier: Apache-2.0
"""Objectives of the systems that regress the pose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.objectives.base import BalanceConfig, Objective, PoseLoss, Terms
from training.objectives.sensor_sets import FusionConfig, sensor_sets
from vmloc_ros.core.models import ClipModel, FusingModel, ModelInput, RegressionModel
from vmloc_ros.core.models.baselines import MapNet, PoseNetPlus
from vmloc_ros.core.models.rotation import quaternion_exp, quaternion_log, quaternion_product, six_d_matrix
from vmloc_ros.core.pose_codec import PoseCodec


class PoseObjective(Objective):
    """L_p (VMLoc Eq. 11) of single frames, mean over the batch."""

    def __init__(self, config: BalanceConfig) -> None:
        super().__init__()
        self.pose_loss = PoseLoss(config.beta, config.gamma)

    def terms(self, model: RegressionModel, batch: ModelInput, target: Tensor) -> Terms:
        return {"loss": self.pose_loss(model(batch), target).mean()}


class FusedPoseObjective(PoseObjective):
    """L_p of single frames of several sensors, with modality dropout in expectation."""

    config_type = FusionConfig

    def __init__(self, config: FusionConfig, dropout: float = 0.0) -> None:
        super().__init__(config)
        self._dropout = dropout

    @classmethod
    def build(cls, config: Any, codec: PoseCodec, dropout: float) -> FusedPoseObjective:
        return cls(config, dropout if config.modality_dropout == "expected" else 0.0)

    def terms(self, model: FusingModel, batch: ModelInput, target: Tensor) -> Terms:
        features, sets = model.encode_each(batch), sensor_sets(batch.present, self._dropout)
        outputs = model.fuse({name: x[sets.rows] for name, x in features.items()}, sets.present)
        return {"loss": sets.mean(self.pose_loss(outputs, target[sets.rows]))}


class ClipObjective(PoseObjective):
    """L_p of every frame of a clip, mean over the batch (Clark et al. 2017)."""

    def terms(self, model: ClipModel, batch: ModelInput, target: Tensor) -> Terms:
        outputs = model.decode_clip(_clips(model.frame_features(batch), model.clip_length))
        return {"loss": self.pose_loss(outputs.flatten(0, 1), target).mean()}


class RelativePoseObjective(Objective):
    """L_p of the frames plus L_p of the relative poses of successive frames of a clip (Brahmbhatt et al. 2018).

    The relative pose of frames i and j is the difference of their pose vectors,
    ``v_ij = (p_j - p_i, log q_j - log q_i)``; for rotations without a logarithm it is ``(p_j - p_i, R_i^T R_j)``. Its
    loss has balance weights of its own.
    """

    def __init__(self, config: BalanceConfig) -> None:
        super().__init__()
        self.absolute_loss = PoseLoss(config.beta, config.gamma)
        self.relative_loss = PoseLoss(config.beta, config.gamma)

    def terms(self, model: MapNet, batch: ModelInput, target: Tensor) -> Terms:
        outputs = model(batch)
        clips, true_clips = (_clips(x, model.clip_length) for x in (outputs, target))
        steps, true_steps = _relative(clips, true_clips)
        absolute = self.absolute_loss(outputs, target).mean()
        relative = self.relative_loss(steps, true_steps).mean()
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


def _relative(clips: Tensor, true_clips: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs ``(N, 3 + R)`` and pose vectors ``(N, 6)`` of the steps of clips ``(C, T, 3 + R)``, ``(C, T, 6)``."""
    steps, true_steps = clips.diff(dim=1), true_clips.diff(dim=1)
    if clips.shape[-1] > 6:
        matrices = six_d_matrix(clips[..., 3:])
        rotation = (matrices[:, :-1].mT @ matrices[:, 1:])[..., :2].mT.flatten(-2)  # its first two columns
        steps = torch.cat([steps[..., :3], rotation], dim=-1)
        quaternions = quaternion_exp(true_clips[..., 3:])
        inverse = quaternions[:, :-1] * quaternions.new_tensor([1.0, -1.0, -1.0, -1.0])
        true_rotation = quaternion_log(quaternion_product(inverse, quaternions[:, 1:]))
        true_steps = torch.cat([true_steps[..., :3], true_rotation], dim=-1)
    return steps.flatten(0, 1), true_steps.flatten(0, 1)
