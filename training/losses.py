# SPDX-License-Identifier: Apache-2.0
"""The loss of a pose, shared by the objectives."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
