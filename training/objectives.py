# SPDX-License-Identifier: Apache-2.0
"""What each system of the registry minimises in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.config import ObjectiveConfig
from training.dense import DenseObjective
from training.estimators import bound_loss, elbo_loss
from training.losses import PoseLoss
from training.objective import Objective, Terms
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models import ClipModel, ModelInput, PoseModel, Posterior, RegressionModel, VariationalModel
from vmloc_ros.core.models.baselines import MapNet, PoseNetPlus
from vmloc_ros.core.models.rotation import quaternion_exp
from vmloc_ros.core.pose_codec import PoseCodec


class BoundObjective(Objective):
    """The importance-weighted bound (VMLoc Eq. 7), with the estimator of its gradient that the configuration names."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.pose_loss = PoseLoss(config.beta, config.gamma)

    def terms(self, model: VariationalModel, batch: ModelInput, target: Tensor) -> Terms:
        posterior = model.encode(batch)
        samples, kl_weight = self.config.samples, self.config.kl_weight
        bound = bound_loss(model, posterior, target, self.pose_loss, samples, kl_weight, self.config.estimator)
        watched = {"effective_samples": bound.effective_samples.mean(), **_watch_posterior(posterior)}
        return {"loss": bound.loss, **watched}


class ElboObjective(Objective):
    """The plain ELBO of one sample (MVAE), whatever number of samples the configuration names."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.kl_weight = config.kl_weight
        self.pose_loss = PoseLoss(config.beta, config.gamma)

    def terms(self, model: VariationalModel, batch: ModelInput, target: Tensor) -> Terms:
        posterior = model.encode(batch)
        loss = elbo_loss(model, posterior, target, self.pose_loss, self.kl_weight)
        return {"loss": loss, **_watch_posterior(posterior)}


class PoseObjective(Objective):
    """L_p (VMLoc Eq. 11) of every frame by itself, mean over the batch."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.pose_loss = PoseLoss(config.beta, config.gamma)

    def terms(self, model: RegressionModel, batch: ModelInput, target: Tensor) -> Terms:
        return {"loss": self.pose_loss(model(batch), target).mean()}


class ClipObjective(PoseObjective):
    """L_p of every frame, each read within its clip (Clark et al. 2017)."""

    def terms(self, model: ClipModel, batch: ModelInput, target: Tensor) -> Terms:
        vectors = model.decode_clip(_clips(model.frame_features(batch), model.clip_length))
        return {"loss": self.pose_loss(vectors.flatten(0, 1), target).mean()}


class RelativePoseObjective(Objective):
    """L_p of the frames plus L_p of the steps between successive frames of a clip (Brahmbhatt et al. 2018).

    The step from frame i to j is the difference of their pose vectors, ``v_ij = (p_j - p_i, log q_j - log q_i)``, and
    has balance weights of its own.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
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

    ``|x - x*|_1 exp(-s_x) + s_x + |q - q*|_1 exp(-s_q) + s_q``, q of the sign that is nearer to q*. The weights start
    at the configuration's ``beta`` and ``gamma``; the paper's own start, for positions in metres, is 0 and -3.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
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


class TrainingStep(nn.Module):
    """Model and objective as one module, so that several processes' gradients of both are averaged."""

    def __init__(self, model: PoseModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: ModelInput, target: Tensor) -> Terms:
        return self.objective.terms(self.model, batch, target)


def _watch_posterior(posterior: Posterior) -> Terms:
    """KL to the prior in nats, and the mean variance of each modality's expert (the prior's is 1)."""
    watched = {"kl": posterior.joint.kl_to_standard_normal().detach().mean()}
    for name, expert in posterior.experts.items():
        rows = posterior.present[name]
        variance = torch.exp(expert.log_variance.detach()).mean(dim=-1)
        watched[f"variance_{name}"] = (variance * rows).sum() / rows.sum().clamp(min=1)
    return watched


def _clips(frames: Tensor, length: int) -> Tensor:
    """``(N * length, F)`` frames to ``(N, length, F)`` clips."""
    return frames.unflatten(0, (-1, length))


OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {
    "vmloc": BoundObjective,
    "image_vmloc": BoundObjective,
    "depth_vmloc": BoundObjective,
    "attention_vmloc": PoseObjective,
    "poe_vmloc": ElboObjective,
    "atloc": PoseObjective,
    "mapnet": RelativePoseObjective,
    "posenet_plus": HomoscedasticObjective,
    "hourglass": PoseObjective,
    "vidloc": ClipObjective,
}
DENSE = ("vmloc_dense", "dense_image", "dense_lidar")


def build_objective(name: str, config: ObjectiveConfig, codec: PoseCodec) -> Objective:
    """The objective of the system of that name. Raises ModelError: it is not trained by gradients.

    Args:
        codec: of the map: what metres a system's coordinates mean.
    """
    if name in DENSE:
        return DenseObjective(config, codec)
    if name not in OBJECTIVES:
        raise ModelError(
            f"model {name!r} has no objective; those that have: {', '.join(sorted([*OBJECTIVES, *DENSE]))}"
        )
    return OBJECTIVES[name](config)
