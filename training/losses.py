# SPDX-License-Identifier: Apache-2.0
"""VMLoc's objective: learnable geometric loss and importance-weighted bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vmloc_ros.core.models import Posterior, VMLoc
from vmloc_ros.core.models.fusion import standard_normal_log_prob


class PoseLoss(nn.Module):
    """``L_p = |p - p*|_1 exp(-beta) + beta + |log q - log q*|_1 exp(-gamma) + gamma`` (VMLoc Eq. 11).

    Args:
        beta: start of the learnable position weight.
        gamma: start of the learnable rotation weight.
    """

    def __init__(self, beta: float = -3.0, gamma: float = 0.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta))
        self.gamma = nn.Parameter(torch.tensor(gamma))

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Loss ``(..., B)`` of pose vectors ``(..., B, 6)`` against ``(B, 6)``."""
        error = (predicted - target).abs()
        position, rotation = error[..., :3].sum(-1), error[..., 3:].sum(-1)
        return position * torch.exp(-self.beta) + self.beta + rotation * torch.exp(-self.gamma) + self.gamma


def importance_weighted_loss(
    model: VMLoc,
    posterior: Posterior,
    target: Tensor,
    pose_loss: PoseLoss,
    samples: int,
    kl_weight: float,
) -> Tensor:
    """Negative importance-weighted bound, mean over the batch (VMLoc Eq. 7, 10, 15).

    ``log w_i = -L_p(y_i, y*) + lambda (log p(z_i) - log q(z_i | x))``; the bound is ``log mean_i w_i``.

    Args:
        target: ``(B, 6)`` pose vectors.
        samples: k.
        kl_weight: lambda.
    """
    z = posterior.joint.sample(samples)  # (k, B, D)
    log_ratio = standard_normal_log_prob(z) - posterior.joint.log_prob(z)
    log_weights = -pose_loss(model.decode(z), target) + kl_weight * log_ratio
    return -(torch.logsumexp(log_weights, dim=0) - math.log(samples)).mean()
