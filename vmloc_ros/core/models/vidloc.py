# SPDX-License-Identifier: Apache-2.0
"""VidLoc: a CNN on all modalities together, an LSTM over the clip, a pose for each frame (Clark et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmloc_ros.core.models.base import ClipModel, require_modality
from vmloc_ros.core.models.config import ModelConfig, Rotation, check_sizes
from vmloc_ros.core.models.encoder import make_trunk
from vmloc_ros.core.models.input_output import ModelInput
from vmloc_ros.core.models.rotation import ROTATION_WIDTHS


@dataclass(frozen=True, slots=True)
class VidLocConfig(ModelConfig):
    """Settings of ``vidloc``.

    Attributes:
        feature_dim: width of the layer before the LSTM.
        dropout: before the pose heads, in training only.
        clip_length: successive frames of a clip, in training and on the robot.
        recurrent_dim: LSTM units per direction.
        bidirectional: whether the LSTM also reads clips backwards, so that later frames influence earlier poses.
        rotation: how the network outputs rotations; see :mod:`vmloc_ros.core.models.rotation`.
    """

    feature_dim: int = 2048
    dropout: float = 0.5
    clip_length: int = 16
    recurrent_dim: int = 256
    bidirectional: bool = True
    rotation: Rotation = "six_d"

    def __post_init__(self) -> None:
        check_sizes(self, "feature_dim", "clip_length", "recurrent_dim")


class VidLoc(ClipModel):
    """VidLoc with early fusion: modalities are channels of one image; zeros where a modality is absent.

    The image has the size of the first modality. Where a frame lacks that modality, its size in training is used, so
    that the others are resized as they were there.

    The pose heads are linear: outputs of an LSTM lie in (-1, 1) and could not cover the extent of a map.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.

    Attributes:
        input_size: ``(2,)`` height and width of the first modality in training; zeros in an untrained model.
    """

    input_size: Tensor

    def __init__(self, config: VidLocConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        self.clip_length = config.clip_length
        self._channels = dict(channels)
        self.trunk, width = make_trunk(config.backbone, sum(channels.values()), pretrained)
        self.feature = nn.Linear(width, config.feature_dim)
        self.lstm = nn.LSTM(
            config.feature_dim, config.recurrent_dim, batch_first=True, bidirectional=config.bidirectional
        )
        self.dropout = nn.Dropout(config.dropout)
        # Linear heads for position and rotation, side by side, are one linear layer.
        outputs = 3 + ROTATION_WIDTHS[config.rotation]
        self.heads = nn.Linear(config.recurrent_dim * (1 + config.bidirectional), outputs)
        self.register_buffer("input_size", torch.zeros(2, dtype=torch.int64))

    def frame_features(self, batch: ModelInput) -> Tensor:
        """Features ``(B, feature_dim)`` of single frames.

        Raises:
            ModelError: a frame has no modality.
        """
        require_modality(batch, self.modalities)
        size = self._image_size(batch)
        image = torch.cat([self._channels_of(name, batch, size) for name in self.modalities], dim=1)
        return torch.relu(self.feature(self.trunk(image).mean(dim=(2, 3))))

    def decode_clip(self, features: Tensor) -> Tensor:
        states, _ = self.lstm(features)
        return self.heads(self.dropout(states))

    def _image_size(self, batch: ModelInput) -> tuple[int, int]:
        first = batch.tensors[self.modalities[0]]
        if first.dim() == 4:  # otherwise a placeholder: no sample has the modality
            if self.training:
                self.input_size.copy_(torch.tensor(first.shape[2:]))
            return first.shape[2], first.shape[3]
        height, width = self.input_size.tolist()
        if height:
            return height, width
        other = next(x for x in batch.tensors.values() if x.dim() == 4)
        return other.shape[2], other.shape[3]

    def _channels_of(self, name: str, batch: ModelInput, size: tuple[int, int]) -> Tensor:
        """The modality's channels ``(B, C, *size)`` of the fused image."""
        x, present = batch.tensors[name], batch.present[name]
        if x.dim() < 4:
            return x.new_zeros(len(batch), self._channels[name], *size)
        x = torch.where(present.view(-1, 1, 1, 1), x, 0.0)
        if x.shape[2:] == size:
            return x
        # Nearest neighbour: averages of measured with unmeasured pixels would invent surfaces.
        return nn.functional.interpolate(x, size=size, mode="nearest-exact")
