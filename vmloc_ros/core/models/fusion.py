# SPDX-License-Identifier: Apache-2.0
"""Gaussian posteriors and their product (VMLoc Eq. 4-5; Wu & Goodman 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vmloc_ros.core.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """Diagonal normal distribution; ``mean`` and ``log_variance`` are ``(..., D)``."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """``(count, ..., D)`` reparameterised samples ``mean + sigma * eps``."""
        noise = torch.randn(
            (count, *self.mean.shape), generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of ``(..., D)`` samples, summed over D."""
        squared = (z - self.mean) ** 2 * torch.exp(-self.log_variance)
        return -0.5 * (squared + self.log_variance + math.log(2 * math.pi)).sum(dim=-1)

    def kl_to_standard_normal(self) -> Tensor:
        """KL(self || N(0, I)) in nats, summed over D."""
        return 0.5 * (self.mean**2 + torch.exp(self.log_variance) - self.log_variance - 1).sum(dim=-1)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Log density of ``(..., D)`` samples under the prior N(0, I), summed over D."""
    return -0.5 * (z**2 + math.log(2 * math.pi)).sum(dim=-1)


def product_of_experts(experts: Gaussian, present: Tensor) -> Gaussian:
    """Product of the prior N(0, I) and every expert that is present (VMLoc Eq. 5).

    Args:
        experts: mean and log-variance ``(M, B, D)`` of M >= 1 modalities. Values of absent ones are ignored.
        present: ``(M, B)`` bool; an absent expert is no factor of that sample's product.

    Returns:
        The joint posterior ``(B, D)``: precision ``1 + sum 1/sigma_m^2``, mean ``sum mu_m/sigma_m^2 / precision``.

    Raises:
        ModelError: a sample has no modality at all.
    """
    if not bool(present.any(dim=0).all()):
        missing = torch.nonzero(~present.any(dim=0)).flatten().tolist()
        raise ModelError(f"no modality is present in sample {missing} of the batch; a pose needs at least one")
    # where() before any arithmetic: values of an absent expert are arbitrary, and NaN would reach exp()'s gradient.
    mask = present.unsqueeze(-1)
    precision = torch.exp(-torch.where(mask, experts.log_variance, torch.inf))
    weighted_mean = torch.where(mask, experts.mean, 0.0) * precision
    joint_precision = 1.0 + precision.sum(dim=0)
    return Gaussian(weighted_mean.sum(dim=0) / joint_precision, -torch.log(joint_precision))
