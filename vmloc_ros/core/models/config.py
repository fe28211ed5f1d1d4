# SPDX-License-Identifier: Apache-2.0
"""Settings that systems share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Settings that all systems have.

    Each family of systems derives a configuration with further settings, which its registry entry names.

    Attributes:
        name: an entry of the registry; ``vmloc models`` lists it.
        backbone: torchvision classification CNN of every encoder.
    """

    name: str = "vmloc"
    backbone: str = "resnet34"


Rotation = Literal["log_quaternion", "six_d"]
"""How a network outputs rotations: see :mod:`vmloc_ros.core.models.rotation`."""


@dataclass(frozen=True, slots=True)
class LatentConfig(ModelConfig):
    """Settings of systems that fuse their modalities in one latent vector: ``vmloc`` and its variants.

    Attributes:
        latent_dim: D of the latent space (VMLoc: 1024).
        hidden_dim: width between the regressor's two layers.
        attention_reduction: the latent size divided by the attention's inner size.
        dropout: before the regressor, in training only.
        rotation: how the network outputs rotations: ``six_d``, which has no jump, or ``log_quaternion`` (VMLoc Eq. 12);
            see :mod:`vmloc_ros.core.models.rotation`.
    """

    latent_dim: int = 1024
    hidden_dim: int = 1024
    attention_reduction: int = 8
    dropout: float = 0.5
    rotation: Rotation = "six_d"

    def __post_init__(self) -> None:
        check_sizes(self, "latent_dim", "hidden_dim", "attention_reduction")


@dataclass(frozen=True, slots=True)
class VariationalConfig(LatentConfig):
    """Settings of systems whose encoders give a Gaussian posterior of the latent vector.

    Attributes:
        log_variance_range: bounds of the experts' log-variance. The upper one keeps the posterior narrow: without it,
            training with several samples and a small ``kl_weight`` prefers noise to information
            (docs/importance_weighting.md).
        log_variance_start: its value before training; None: the middle of the range.
    """

    log_variance_range: tuple[float, float] = (-14.0, -6.0)
    log_variance_start: float | None = None

    def __post_init__(self) -> None:
        LatentConfig.__post_init__(self)
        low, high = self.log_variance_range
        if not -30 <= low < high <= 30:
            raise ValueError(f"log_variance_range is two numbers, low < high, within [-30, 30], got {[low, high]}")
        if self.log_variance_start is not None and not low < self.log_variance_start < high:
            raise ValueError(
                f"log_variance_start lies within log_variance_range {[low, high]}, got {self.log_variance_start}"
            )


def check_sizes(config: Any, *names: str) -> None:
    """Raise ValueError unless the named settings are positive and ``dropout`` lies in [0, 1)."""
    if min(getattr(config, name) for name in names) < 1 or not 0 <= config.dropout < 1:
        raise ValueError(f"{', '.join(names)} must be positive and 0 <= dropout < 1, got {config}")
