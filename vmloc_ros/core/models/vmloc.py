# SPDX-License-Identifier: Apache-2.0
"""VMLoc: one encoder per modality, product of experts, attention, pose regressor (VMLoc Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmloc_ros.core.models.attention import SelfAttention
from vmloc_ros.core.models.encoder import Encoder, make_trunk
from vmloc_ros.core.models.fusion import Gaussian, product_of_experts


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What is needed to build a model, beside the channels that preprocessing gives.

    Attributes:
        name: an entry of the registry (``vmloc_ros.core.models.build_model``).
        backbone: torchvision classification CNN of every encoder.
        latent_dim: D of the latent space (VMLoc: 1024).
        hidden_dim: width between the regressor's two layers.
        attention_reduction: D divided by the attention's inner size.
        dropout: after the attention, in training only.
    """

    name: str = "vmloc"
    backbone: str = "resnet34"
    latent_dim: int = 1024
    hidden_dim: int = 1024
    attention_reduction: int = 8
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if min(self.latent_dim, self.hidden_dim, self.attention_reduction) < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"sizes must be positive and 0 <= dropout < 1, got {self}")


@dataclass(frozen=True, slots=True, eq=False)
class ModelInput:
    """Normalised tensors of a batch.

    Attributes:
        tensors: per modality ``(B, C, H, W)`` float32.
        present: per modality ``(B,)`` bool; rows of ``tensors`` where it is False are ignored.
    """

    tensors: Mapping[str, Tensor]
    present: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """``q(z | x)``: the joint ``(B, D)`` and each modality's own ``(B, D)`` (undefined where not present)."""

    joint: Gaussian
    experts: Mapping[str, Gaussian]
    present: Mapping[str, Tensor]


class VMLoc(nn.Module):
    """The localization network.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.encoders = nn.ModuleDict(
            {
                name: Encoder(*make_trunk(config.backbone, count, pretrained), config.latent_dim)
                for name, count in channels.items()
            }
        )
        self.attention = SelfAttention(config.latent_dim, config.attention_reduction)
        self.dropout = nn.Dropout(config.dropout)
        self.position = _regressor(config.latent_dim, config.hidden_dim)
        self.log_quaternion = _regressor(config.latent_dim, config.hidden_dim)

    def encode(self, batch: ModelInput) -> Posterior:
        """Posterior of every sample.

        Raises:
            ModelError: a sample has no modality.
        """
        experts = {name: self._encode_modality(name, batch) for name in self.encoders}
        stacked = Gaussian(
            torch.stack([expert.mean for expert in experts.values()]),
            torch.stack([expert.log_variance for expert in experts.values()]),
        )
        present = torch.stack([batch.present[name] for name in self.encoders])
        return Posterior(product_of_experts(stacked, present), experts, batch.present)

    def decode(self, z: Tensor) -> Tensor:
        """Normalised position and log-quaternion ``(..., 6)`` of latents ``(..., D)``."""
        features = self.dropout(self.attention(z))
        return torch.cat([self.position(features), self.log_quaternion(features)], dim=-1)

    def forward(self, batch: ModelInput) -> Tensor:
        """Pose vectors ``(B, 6)`` at the posterior mean."""
        return self.decode(self.encode(batch).joint.mean)

    def _encode_modality(self, name: str, batch: ModelInput) -> Gaussian:
        """Only samples that have the modality pass the encoder: absence costs nothing and shifts no batch norm."""
        inputs, present = batch.tensors[name], batch.present[name]
        if bool(present.all()):
            return Gaussian(*self.encoders[name](inputs))
        mean = inputs.new_zeros(len(inputs), self.latent_dim)
        log_variance = torch.zeros_like(mean)
        if bool(present.any()):
            rows = torch.nonzero(present).flatten()
            encoded_mean, encoded_log_variance = self.encoders[name](inputs[rows])
            mean = mean.to(encoded_mean.dtype).index_copy(0, rows, encoded_mean)
            log_variance = log_variance.to(encoded_mean.dtype).index_copy(0, rows, encoded_log_variance)
        return Gaussian(mean, log_variance)


def _regressor(latent_dim: int, hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 3))
