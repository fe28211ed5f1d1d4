# SPDX-License-Identifier: Apache-2.0
"""VMLoc's objective, the importance-weighted bound, and estimators of the encoders' gradient; MVAE's plain ELBO.

Every estimator has the same value and the same gradient of decoder, beta and gamma: weights ``w~_i = w_i / sum_j w_j``
(VMLoc Eq. 14). They differ in the gradient of the encoders phi, which reaches the objective through the samples z_i and
through the parameters of ``log q(z_i | x)`` (the score term; its expectation is not zero once samples are weighted):

``iwae``         both ways, plain differentiation of the bound (VMLoc Eq. 8; Burda et al. 2016). Unbiased.
``stl``          without the score term (Roeder et al. 2017): weights ``w~_i`` on ``d log w_i/dz_i dz_i/dphi``.
                 Unbiased for k = 1, and for lambda = 0.
``dreg``         weights ``w~_i^2`` (VMLoc Eq. 13; Tucker et al. 2019). Unbiased for lambda = 1, and for k = 1.
``dreg_lambda``  weights ``(1 - lambda) w~_i + lambda w~_i^2``. Unbiased for every lambda: the score term is
                 ``-lambda w~_i d log q(z_i | x)/dphi``, and in expectation ``w~_i d log q(z_i | x)/dphi`` equals
                 ``(w~_i - w~_i^2) d log w_i/dz_i dz_i/dphi``.

All but ``iwae`` have noise of size ``lambda / sigma`` in the gradient of each latent's mean, from ``d log q/dz``; in
``iwae`` path and score cancel there. With a narrow posterior, ``lambda = 1e-3`` is too large for them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from training.objectives.base import Objective, PoseLoss, Terms
from training.objectives.sensor_sets import FusionConfig, SensorSets, sensor_sets
from vmloc_ros.core.models import ModelInput, Posterior, VariationalModel
from vmloc_ros.core.models.fusion import Gaussian, standard_normal_log_prob
from vmloc_ros.core.pose_codec import PoseCodec


@dataclass(frozen=True, slots=True)
class ElboConfig(FusionConfig):
    """Settings of the ELBO.

    Attributes:
        kl_weight: lambda, weight of the KL divergence.
    """

    kl_weight: float = 1e-4

    def __post_init__(self) -> None:
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight must not be negative, got {self}")


@dataclass(frozen=True, slots=True)
class BoundConfig(ElboConfig):
    """Settings of VMLoc's objective (Eq. 11, 15).

    Attributes:
        samples: k, posterior samples of each frame.
        estimator: estimator of the encoders' gradient; see :mod:`training.objectives.variational`.
    """

    samples: int = 10
    estimator: Literal["iwae", "stl", "dreg", "dreg_lambda"] = "dreg_lambda"

    def __post_init__(self) -> None:
        if self.samples < 1 or self.kl_weight < 0:
            raise ValueError(f"samples >= 1 and kl_weight >= 0, got {self}")


class Bound(NamedTuple):
    """Result of :func:`bound_loss`.

    Attributes:
        loss: ``(B,)`` the negative bound of each frame.
        effective_samples: ``(B,)`` effective sample size ``1 / sum_i w~_i^2``, from 1 to k; without gradient.
    """

    loss: Tensor
    effective_samples: Tensor


def bound_loss(
    model: VariationalModel,
    posterior: Posterior,
    target: Tensor,
    pose_loss: PoseLoss,
    samples: int,
    kl_weight: float,
    estimator: str,
) -> Bound:
    """Negative importance-weighted bound (VMLoc Eq. 7, 10, 15).

    ``log w_i = -L_p(y_i, y*) + lambda (log p(z_i) - log q(z_i | x))``; the bound is ``log mean_i w_i``.

    Args:
        target: ``(B, 6)`` pose vectors.
        samples: k.
        kl_weight: lambda.
        estimator: ``iwae``, ``stl``, ``dreg`` or ``dreg_lambda``; see the module.
    """
    joint = posterior.joint
    z = joint.sample(samples)  # (k, B, D)
    density = joint if estimator == "iwae" else Gaussian(joint.mean.detach(), joint.log_variance.detach())
    log_ratio = standard_normal_log_prob(z) - density.log_prob(z)
    log_weights = -pose_loss(model.decode(z), target) + kl_weight * log_ratio  # (k, B)
    weights = torch.softmax(log_weights.detach(), dim=0)
    _reweight_gradient(z, weights, {"iwae": 0.0, "stl": 0.0, "dreg": 1.0, "dreg_lambda": kl_weight}[estimator])
    loss = math.log(samples) - torch.logsumexp(log_weights, dim=0)
    return Bound(loss, 1 / weights.square().sum(dim=0))


def _reweight_gradient(z: Tensor, weights: Tensor, share: float) -> None:
    """Change the weights of the gradient with respect to z from ``w~`` to ``(1 - share) w~ + share w~^2``.

    The hook is on the samples that decoder and densities read: all of the gradient of phi passes it, and none of theta.
    """
    if share and z.requires_grad:
        factor = (1 - share + share * weights).unsqueeze(-1)
        z.register_hook(lambda gradient: gradient * factor)


def elbo_loss(
    model: VariationalModel, posterior: Posterior, target: Tensor, pose_loss: PoseLoss, kl_weight: float
) -> Tensor:
    """Negative evidence lower bound ``(B,)``: ``L_p`` of one sample and lambda times the KL in closed form.

    VMLoc Eq. 3, as in MVAE (Wu & Goodman 2018).

    Args:
        target: ``(B, 6)`` pose vectors.
        kl_weight: lambda.
    """
    joint = posterior.joint
    predicted = model.decode(joint.sample(1).squeeze(0))
    return pose_loss(predicted, target) + kl_weight * joint.kl_to_standard_normal()


class VariationalObjective(Objective):
    """Base of the bound and the ELBO, with modality dropout in expectation.

    Args:
        dropout: probability of modality dropout; 0 where it is drawn, and the batch lacks the modalities already.
    """

    def __init__(self, config: Any, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self._dropout = config, dropout
        self.pose_loss = PoseLoss(config.beta, config.gamma)

    @classmethod
    def build(cls, config: Any, codec: PoseCodec, dropout: float) -> VariationalObjective:
        return cls(config, dropout if config.modality_dropout == "expected" else 0.0)

    def terms(self, model: VariationalModel, batch: ModelInput, target: Tensor) -> Terms:
        posterior = model.encode(batch)
        sets = sensor_sets(posterior.present, self._dropout)
        of_sets = posterior.of_sensors(sets.rows, sets.present)
        return {**self.loss(model, of_sets, target[sets.rows], sets), **_posterior_terms(posterior)}

    @abstractmethod
    def loss(self, model: VariationalModel, posterior: Posterior, target: Tensor, sets: SensorSets) -> Terms:
        """The scalar ``loss``, and further detached scalars, from the posteriors of the sets' rows."""


class BoundObjective(VariationalObjective):
    """The importance-weighted bound (VMLoc Eq. 7), with the estimator of its gradient that the configuration names."""

    config_type = BoundConfig

    def loss(self, model: VariationalModel, posterior: Posterior, target: Tensor, sets: SensorSets) -> Terms:
        config = self.config
        bound = bound_loss(model, posterior, target, self.pose_loss, config.samples, config.kl_weight, config.estimator)
        return {"loss": sets.mean(bound.loss), "effective_samples": sets.mean(bound.effective_samples)}


class ElboObjective(VariationalObjective):
    """The ELBO with one sample (MVAE)."""

    config_type = ElboConfig

    def loss(self, model: VariationalModel, posterior: Posterior, target: Tensor, sets: SensorSets) -> Terms:
        return {"loss": sets.mean(elbo_loss(model, posterior, target, self.pose_loss, self.config.kl_weight))}


def _posterior_terms(posterior: Posterior) -> Terms:
    """KL to the prior in nats, and the mean variance of each modality's expert (that of the prior is 1)."""
    watched = {"kl": posterior.joint.kl_to_standard_normal().detach().mean()}
    for name, expert in posterior.experts.items():
        rows = posterior.present[name]
        variance = torch.exp(expert.log_variance.detach()).mean(dim=-1)
        watched[f"variance_{name}"] = (variance * rows).sum() / rows.sum().clamp(min=1)
    return watched
