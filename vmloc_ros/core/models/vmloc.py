# SPDX-License-Identifier: Apache-2.0
"""VMLoc: one encoder per modality, product of experts, attention, pose regressor (VMLoc Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vmloc_ros.core.models.attention import SelfAttention
from vmloc_ros.core.models.base import VariationalModel
from vmloc_ros.core.models.config import LatentConfig, VariationalConfig
from vmloc_ros.core.models.encoder import Encoder, make_trunk, run_where_present
from vmloc_ros.core.models.fusion import Gaussian
from vmloc_ros.core.models.input_output import ModelInput, Posterior
from vmloc_ros.core.models.rotation import ROTATION_WIDTHS


class VMLoc(VariationalModel):
    """The localization network, for one modality (``image_vmloc``, ``depth_vmloc``) or more.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    def __init__(self, config: VariationalConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        self.latent_dim = config.latent_dim
        self.encoders = nn.ModuleDict(
            {
                name: Encoder(
                    *make_trunk(config.backbone, count, pretrained),
                    config.latent_dim,
                    config.log_variance_range,
                    config.log_variance_start,
                )
                for name, count in channels.items()
            }
        )
        self.attention = SelfAttention(config.latent_dim, config.attention_reduction)
        self.dropout = nn.Dropout(config.dropout)
        self.position, self.log_quaternion = pose_branches(config)

    def encode(self, batch: ModelInput) -> Posterior:
        """Posterior of every frame.

        Raises:
            ModelError: a frame has no modality.
        """
        experts = {name: self._encode_modality(name, batch) for name in self.encoders}
        return Posterior.of_experts(experts, batch.present)

    def decode(self, z: Tensor) -> Tensor:
        """Normalised position and rotation ``(..., 3 + R)`` of latents ``(..., D)``."""
        features = self.dropout(self.attention(z))
        return torch.cat([self.position(features), self.log_quaternion(features)], dim=-1)

    def _encode_modality(self, name: str, batch: ModelInput) -> Gaussian:
        encoder = self.encoders[name]
        both = run_where_present(
            lambda x: torch.cat(encoder(x), dim=-1), batch.tensors[name], batch.present[name], 2 * self.latent_dim
        )
        # Densities are sums over all latent dimensions: half precision, which training may use, is too coarse.
        return Gaussian(*both.to(torch.promote_types(both.dtype, torch.float32)).chunk(2, dim=-1))


def pose_branches(config: LatentConfig) -> tuple[nn.Module, nn.Module]:
    """The regressor's branches for position and rotation: Linear - ReLU - Linear each (VMLoc, "Pose Regressor").

    The rotation's is named ``log_quaternion`` in checkpoints, whatever its representation.
    """

    def branch(width: int) -> nn.Module:
        first, last = nn.Linear(config.latent_dim, config.hidden_dim), nn.Linear(config.hidden_dim, width)
        return nn.Sequential(first, nn.ReLU(), last)

    return branch(3), branch(ROTATION_WIDTHS[config.rotation])
