# SPDX-License-Identifier: Apache-2.0
"""Baselines of VMLoc that regress the pose of a single frame, without a latent space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vmloc_ros.core.models.attention import SelfAttention
from vmloc_ros.core.models.base import FusingModel, RegressionModel, require_modality
from vmloc_ros.core.models.config import LatentConfig, ModelConfig, Rotation, check_sizes
from vmloc_ros.core.models.encoder import make_trunk, run_where_present
from vmloc_ros.core.models.input_output import ModelInput
from vmloc_ros.core.models.rotation import ROTATION_WIDTHS, quaternion_log
from vmloc_ros.core.models.vmloc import pose_branches


class AttentionVMLoc(FusingModel):
    """VMLoc without product of experts and posterior: concatenated features, attention, regressor (VMLoc, Table 3).

    Each modality has an equal share of the ``latent_dim`` features (512 + 512 of 1024); zeros where it is absent.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    def __init__(self, config: LatentConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
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
        self.position, self.log_quaternion = pose_branches(config)

    def encode_each(self, batch: ModelInput) -> dict[str, Tensor]:
        require_modality(batch, self.modalities)
        return {
            name: run_where_present(encoder, batch.tensors[name], batch.present[name], self._shares[name])
            for name, encoder in self.encoders.items()
        }

    def fuse(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        parts = [torch.where(present[name].unsqueeze(-1), features[name], 0.0) for name in self.encoders]
        fused = self.dropout(self.attention(torch.cat(parts, dim=-1)))
        return torch.cat([self.position(fused), self.log_quaternion(fused)], dim=-1)


@dataclass(frozen=True, slots=True)
class FeatureConfig(ModelConfig):
    """Settings of systems that estimate the pose from one image's features.

    Attributes:
        feature_dim: width of the layer before the heads (AtLoc: 2048).
        dropout: before the heads, in training only.
    """

    feature_dim: int = 2048
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_sizes(self, "feature_dim")


@dataclass(frozen=True, slots=True)
class RegressorConfig(FeatureConfig):
    """Settings of systems that regress position and rotation from one image's features.

    Attributes:
        rotation: how the network outputs rotations; see :mod:`vmloc_ros.core.models.rotation`.
    """

    rotation: Rotation = "six_d"


@dataclass(frozen=True, slots=True)
class AtLocConfig(RegressorConfig):
    """Settings of ``atloc``.

    Attributes:
        attention_reduction: number of features divided by the attention's inner size.
    """

    attention_reduction: int = 8

    def __post_init__(self) -> None:
        check_sizes(self, "feature_dim", "attention_reduction")


@dataclass(frozen=True, slots=True)
class MapNetConfig(RegressorConfig):
    """Settings of ``mapnet``.

    Attributes:
        clip_length: frames of a clip, 2 or more; training also uses their relative poses.
        clip_spacing: step from one frame of a clip to the next, in frames of the recording.
    """

    clip_length: int = 3
    clip_spacing: int = 10

    def __post_init__(self) -> None:
        check_sizes(self, "feature_dim", "clip_spacing")
        if self.clip_length < 2:
            raise ValueError(
                f"mapnet trains on relative poses within a clip: clip_length is {self.clip_length}, set 2 or more"
            )


class PoseNet(RegressionModel):
    """Trunk - global average pooling - Linear - ReLU - dropout - linear heads; base of the other image systems.

    Args:
        config: ``feature_dim`` is the width before the heads.
        channels: of the one modality.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    def __init__(self, config: FeatureConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        (in_channels,) = channels.values()
        self.trunk, width = self.build_trunk(config.backbone, in_channels, pretrained)
        self.feature = nn.Linear(width, config.feature_dim)
        self.dropout = nn.Dropout(config.dropout)
        # Linear heads for position and rotation, side by side, are one linear layer.
        self.heads = nn.Linear(config.feature_dim, 3 + self.rotation_width(config))

    def rotation_width(self, config: Any) -> int:
        """R, numbers of a rotation in the heads' output."""
        return ROTATION_WIDTHS[config.rotation]

    def build_trunk(self, backbone: str, in_channels: int, pretrained: bool | str) -> tuple[nn.Module, int]:
        """The module from ``(B, C, H, W)`` to ``(B, F, h, w)``, and F."""
        return make_trunk(backbone, in_channels, pretrained)

    def features(self, batch: ModelInput) -> Tensor:
        """``(B, feature_dim)`` before dropout. Raises ModelError: a frame lacks the image."""
        require_modality(batch, self.modalities)
        maps = self.trunk(batch.tensors[self.modalities[0]])
        return torch.relu(self.feature(maps.mean(dim=(2, 3))))

    def forward(self, batch: ModelInput) -> Tensor:
        return self.heads(self.dropout(self.features(batch)))


class AtLoc(PoseNet):
    """Self-attention between the features and the heads (Wang et al. 2019)."""

    def __init__(self, config: AtLocConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(config, channels, pretrained)
        self.attention = SelfAttention(config.feature_dim, config.attention_reduction)

    def features(self, batch: ModelInput) -> Tensor:
        return self.attention(super().features(batch))


class MapNet(PoseNet):
    """PoseNet trained on clips of frames by absolute and relative poses (Brahmbhatt et al. 2018).

    Tuples exist in training only; a robot's frames are localized one by one.
    """

    def __init__(self, config: MapNetConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(config, channels, pretrained)
        self.clip_length, self.clip_spacing = config.clip_length, config.clip_spacing


class PoseNetPlus(PoseNet):
    """PoseNet with a unit quaternion for the rotation (Kendall and Cipolla 2017)."""

    def rotation_width(self, config: Any) -> int:
        return 4

    def position_and_quaternion(self, batch: ModelInput) -> tuple[Tensor, Tensor]:
        """Normalised position ``(B, 3)`` and unit quaternion ``(B, 4)`` of either sign, from the codec's reference."""
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
    """Split ``total`` into ``count`` parts that differ by at most one, the larger ones first."""
    return [total // count + (i < total % count) for i in range(count)]
