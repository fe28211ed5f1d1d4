# SPDX-License-Identifier: Apache-2.0
"""Image retrieval: the pose of the nearest training image in the feature space of a frozen network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.models.base import MemoryModel, require_modality
from vmloc_ros.core.models.config import ModelConfig
from vmloc_ros.core.models.encoder import ImagenetScale, make_trunk
from vmloc_ros.core.models.input_output import Array, ModelInput, Prediction
from vmloc_ros.core.pose_codec import PoseCodec

_BUFFERS = ("descriptors", "positions_m", "quaternions_wxyz")  # of any length


class NearestImage(MemoryModel):
    """Exact nearest-neighbour search by cosine similarity of globally averaged features.

    A baseline that pose regression should beat (Sattler et al. 2019). It has no posterior: its covariance is that of
    held-out errors alone.

    Args:
        config: names the backbone.
        channels: of the image.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`; without them the features are random.
    """

    descriptors: Tensor  # (N, F) float32, unit length
    positions_m: Tensor  # (N, 3) float64
    quaternions_wxyz: Tensor  # (N, 4) float64

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        self.trunk, width = make_trunk(config.backbone, channels[IMAGE], pretrained)
        self.trunk.requires_grad_(False).eval()
        self.scale = ImagenetScale()
        self.register_buffer("descriptors", torch.empty(0, width))
        self.register_buffer("positions_m", torch.empty(0, 3, dtype=torch.float64))
        self.register_buffer("quaternions_wxyz", torch.empty(0, 4, dtype=torch.float64))

    def train(self, mode: bool = True) -> NearestImage:
        super().train(mode)
        self.trunk.eval()  # batch statistics would change the descriptors
        return self

    def describe(self, batch: ModelInput) -> Tensor:
        """Unit descriptors ``(B, F)``. Raises ModelError: a frame has no image."""
        require_modality(batch, self.modalities)
        features = self.trunk(self.scale(batch.tensors[IMAGE])).mean(dim=(2, 3))
        return torch.nn.functional.normalize(features, dim=1)

    def store_frames(self, descriptors: Tensor, positions_m: Array, quaternions_wxyz: Array) -> None:
        self.descriptors = descriptors.to(self.descriptors)
        self.positions_m = torch.as_tensor(positions_m).to(self.positions_m)
        self.quaternions_wxyz = torch.as_tensor(quaternions_wxyz).to(self.quaternions_wxyz)

    def retrieve(self, descriptors: Tensor) -> Prediction:
        """Poses of the stored images nearest to descriptors ``(B, F)``; of equally near ones, the first.

        Raises:
            ModelError: no image is stored.
        """
        if not len(self.descriptors):
            raise ModelError("nearest stores no image; make a checkpoint with `vmloc train`, or call store_frames()")
        rows = (descriptors @ self.descriptors.T).argmax(dim=1)
        return Prediction(self.positions_m[rows].cpu().numpy(), self.quaternions_wxyz[rows].cpu().numpy())

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        return self.retrieve(self.describe(batch))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        """As in every module, but any number of images may be stored."""
        for name in _BUFFERS:
            if prefix + name in state_dict:
                own = getattr(self, name)
                setattr(self, name, own.new_empty((*state_dict[prefix + name].shape[:1], *own.shape[1:])))
        if len({len(getattr(self, name)) for name in _BUFFERS}) > 1:
            arguments[-1].append("the stored descriptors and poses differ in number")
        super()._load_from_state_dict(state_dict, prefix, *arguments)
