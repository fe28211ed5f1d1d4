# SPDX-License-Identifier: Apache-2.0
"""Settings that systems share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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


@dataclass(frozen=True, slots=True)
class LatentConfig(ModelConfig):
    """Settings of systems that fuse their modalities in one latent vector: ``vmloc`` and its variants.

    Attributes:
        latent_dim: D of the latent space (VMLoc: 1024).
        hidden_dim: width between the regressor's two layers.
        attention_reduction: the latent size divided by the attention's inner size.
        dropout: before the regressor, in training only.
    """

    latent_dim: int = 1024
    hidden_dim: int = 1024
    attention_reduction: int = 8
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_sizes(self, "latent_dim", "hidden_dim", "attention_reduction")


def check_sizes(config: Any, *names: str) -> None:
    """Raise ValueError unless the named settings are positive and ``dropout`` lies in [0, 1)."""
    if min(getattr(config, name) for name in names) < 1 or not 0 <= config.dropout < 1:
        raise ValueError(f"{', '.join(names)} must be positive and 0 <= dropout < 1, got {config}")
