# SPDX-License-Identifier: Apache-2.0
"""The systems that VMLoc is compared with and that see one frame at a time; regression without a latent space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models.attention import SelfAttention
from vmloc_ros.core.models.base import ModelConfig, ModelInput, RegressionModel, require_modality
from vmloc_ros.core.models.encoder import make_trunk, run_where_present
from vmloc_ros.core.models.rotation import quaternion_log
from vmloc_ros.core.models.vmloc import regressor


class AttentionVMLoc(RegressionModel):
    """VMLoc without product of experts and posterior: features side by side, attention, regressor (VMLoc, Table 3).

    Each modality gives an equal part of the ``latent_dim`` features (512 + 512 of 1024); that of an absent one is
    zeros.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        shares = _even_shares(config.latent_dim, len(channels))
        self.encoders = nn.ModuleDict(
            {
                name: _FeatureEncoder(*make_trunk(config.backbone, count, pretrained), share)
                for (name, count), share in zip(channels.items(), shares, strict=True)
            }
        )
        self._shares = dict(zip(channels, shares, strict=True))
        self.attention = SelfAttention(config.latent_dim, config.attention_reduction)
        self.dropout = nn.Dropout(config.dropout)
        self.position = regressor(config.latent_dim, config.hidden_dim)
        self.log_quaternion = regressor(config.latent_dim, config.hidden_dim)

    def forward(self, batch: ModelInput) -> Tensor:
        """Pose vectors ``(B, 6)``.

        Raises:
            ModelError: a sample has no modality.
        """
        require_modality(batch, self.modalities)
        parts = [
            run_where_present(encoder, batch.tensors[name], batch.present[name], self._shares[name])
            for name, encoder in self.encoders.items()
        ]
        features = self.dropout(self.attention(torch.cat(parts, dim=-1)))
        return torch.cat([self.position(features), self.log_quaternion(features)], dim=-1)


class PoseNet(RegressionModel):
    """Trunk - global average pooling - Linear - ReLU - dropout - linear heads; what the image systems share.

    Args:
        config: ``feature_dim`` is the width before the heads.
        channels: of the one modality.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
        outputs: of the linear heads together; position (3) and log-quaternion (3) unless a subclass says otherwise.
    """

    def __init__(
        self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False, outputs: int = 6
    ) -> None:
        super().__init__(tuple(channels))
        (in_channels,) = channels.values()
        self.trunk, width = self.build_trunk(config.backbone, in_channels, pretrained)
        self.feature = nn.Linear(width, config.feature_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.Linear(config.feature_dim, outputs)  # linear heads side by side are one linear layer

    def build_trunk(self, backbone: str, in_channels: int, pretrained: bool | str) -> tuple[nn.Module, int]:
        """What maps ``(B, C, H, W)`` to ``(B, F, h, w)``, and F."""
        return make_trunk(backbone, in_channels, pretrained)

    def features(self, batch: ModelInput) -> Tensor:
        """``(B, feature_dim)`` before dropout. Raises ModelError: a sample lacks the image."""
        require_modality(batch, self.modalities)
        maps = self.trunk(batch.tensors[self.modalities[0]])
        return torch.relu(self.feature(maps.mean(dim=(2, 3))))

    def forward(self, batch: ModelInput) -> Tensor:
        return self.heads(self.dropout(self.features(batch)))


class AtLoc(PoseNet):
    """Self-attention between the features and the heads (Wang et al. 2019)."""

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(config, channels, pretrained)
        self.attention = SelfAttention(config.feature_dim, config.attention_reduction)

    def features(self, batch: ModelInput) -> Tensor:
        return self.attention(super().features(batch))


class MapNet(PoseNet):
    """PoseNet trained on tuples of frames by absolute and relative poses (Brahmbhatt et al. 2018).

    The tuple exists in training only; a robot's frames are answered one by one.

    Raises:
        ModelError: ``clip_length`` leaves no pair of frames to compare.
    """

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(config, channels, pretrained)
        self.clip_length = config.clip_length or 3
        self.clip_spacing = config.clip_spacing or 10
        if self.clip_length < 2:
            raise ModelError(
                f"mapnet compares frames of a tuple: model.clip_length is {self.clip_length}, set 2 or more"
            )


class PoseNetPlus(PoseNet):
    """PoseNet with a unit quaternion for the rotation (Kendall and Cipolla 2017)."""

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(config, channels, pretrained, outputs=7)

    def position_and_quaternion(self, batch: ModelInput) -> tuple[Tensor, Tensor]:
        """Normalised position ``(B, 3)`` and unit quaternion ``(B, 4)`` from the codec's reference, of either sign."""
        outputs = super().forward(batch)
        return outputs[:, :3], nn.functional.normalize(outputs[:, 3:], dim=1)

    def forward(self, batch: ModelInput) -> Tensor:
        position, quaternion = self.position_and_quaternion(batch)
        return torch.cat([position, quaternion_log(quaternion)], dim=1)


class _FeatureEncoder(nn.Module):
    """``(B, C, H, W)`` to ``(B, width)``: trunk, global average pooling, a linear layer."""

    def __init__(self, trunk: nn.Module, feature_channels: int, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.linear = nn.Linear(feature_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.trunk(x).mean(dim=(2, 3)))


def _even_shares(total: int, count: int) -> list[int]:
    """``total`` in ``count`` parts that differ by at most one, the larger ones first."""
    return [total // count + (i < total % count) for i in range(count)]
