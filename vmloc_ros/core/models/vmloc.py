# SPDX-License-Identifier: Apache-2.0
"""VMLoc: one encoder per modality, product of experts, attention, pose regressor (VMLoc Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vmloc_ros.core.models.attention import SelfAttention
from vmloc_ros.core.models.base import VariationalModel
from vmloc_ros.core.models.config import LatentConfig
from vmloc_ros.core.models.encoder import Encoder, make_trunk, run_where_present
from vmloc_ros.core.models.fusion import Gaussian, product_of_experts
from vmloc_ros.core.models.input_output import ModelInput, Posterior


class VMLoc(VariationalModel):
    """The localization network, for one modality (``image_vmloc``, ``depth_vmloc``) or more.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    def __init__(self, config: LatentConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        self.latent_dim = config.latent_dim
        self.encoders = nn.ModuleDict(
            {
                name: Encoder(*make_trunk(config.backbone, count, pretrained), config.latent_dim)
                for name, count in channels.items()
            }
        )
        self.attention = SelfAttention(config.latent_dim, config.attention_reduction)
        self.dropout = nn.Dropout(config.dropout)
        self.position = regressor(config.latent_dim, config.hidden_dim)
        self.log_quaternion = regressor(config.latent_dim, config.hidden_dim)

    def encode(self, batch: ModelInput) -> Posterior:
        """Posterior of every frame.

        Raises:
            ModelError: a frame has no modality.
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

    def _encode_modality(self, name: str, batch: ModelInput) -> Gaussian:
        encoder = self.encoders[name]
        both = run_where_present(
            lambda x: torch.cat(encoder(x), dim=-1), batch.tensors[name], batch.present[name], 2 * self.latent_dim
        )
        # Densities are sums over all latent dimensions: half precision, which training may use, is too coarse.
        return Gaussian(*both.to(torch.promote_types(both.dtype, torch.float32)).chunk(2, dim=-1))


def regressor(latent_dim: int, hidden_dim: int) -> nn.Sequential:
    """One branch of the pose regressor: Linear - ReLU - Linear (VMLoc, "Pose Regressor")."""
    return nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 3))
