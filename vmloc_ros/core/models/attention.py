# SPDX-License-Identifier: Apache-2.0
"""Non-local self-attention on a latent vector (VMLoc Eq. 16-17; Wang et al. 2018, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """``z + W_alpha (softmax((W_theta z)(W_phi z)^T) W_g z)`` over the features of z.

    Args:
        dim: D.
        reduction: the inner size is ``D / reduction``.
    """

    def __init__(self, dim: int, reduction: int = 8) -> None:
        super().__init__()
        inner = max(1, dim // reduction)
        self.theta = nn.Linear(dim, inner)
        self.phi = nn.Linear(dim, inner)
        self.g = nn.Linear(dim, inner)
        self.alpha = nn.Linear(inner, dim)
        # Identity at the start, as in non-local networks: the block can be put on top of trained features.
        nn.init.zeros_(self.alpha.weight)
        nn.init.zeros_(self.alpha.bias)

    def forward(self, z: Tensor) -> Tensor:
        """From ``(..., D)`` to ``(..., D)``."""
        scores = self.theta(z).unsqueeze(-1) * self.phi(z).unsqueeze(-2)  # (..., D/8, D/8)
        attended = torch.softmax(scores, dim=-1) @ self.g(z).unsqueeze(-1)
        return z + self.alpha(attended.squeeze(-1))
