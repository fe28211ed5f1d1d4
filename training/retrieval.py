# SPDX-License-Identifier: Apache-2.0
"""The honesty baseline: the pose of the nearest training image in the feature space of an ImageNet network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from training.metrics import PoseErrors, pose_errors
from training.sources import Source
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models.encoder import make_trunk
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor


def nearest_image_errors(
    train: Sequence[Source],
    test: Sequence[Source],
    backbone: str,
    pretrained: bool | str,
    progress: bool = True,
) -> PoseErrors:
    """Errors of answering each test image with its nearest training image's pose (cosine similarity, exact search).

    Raises:
        DataError: a side has no images.
        ModelError: the backbone or its weights are not to be had.
    """
    trunk, _ = make_trunk(backbone, 3, pretrained)
    trunk.eval()
    known, known_poses = _describe(trunk, train, progress)
    asked, truth = _describe(trunk, test, progress)
    nearest = (asked @ known.T).argmax(dim=1).tolist()
    return pose_errors(truth, [known_poses[i] for i in nearest])


@torch.inference_mode()
def _describe(trunk: torch.nn.Module, sources: Sequence[Source], progress: bool) -> tuple[Tensor, list[Pose]]:
    """Unit features ``(N, F)`` and poses of all frames that have an image."""
    preprocessor = Preprocessor(PreprocessConfig(modalities=(IMAGE,)))
    # The input scale that torchvision's weights were trained with; ours is [-1, 1].
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    features, poses = [], []
    for source in sources:
        for sample in tqdm(source, total=len(source), desc=f"features of {source.name}", disable=not progress):
            if sample.frame.image is None:
                continue
            image = preprocessor([sample.frame])[0][IMAGE]
            descriptor = trunk(((image + 1) / 2 - mean) / deviation).mean(dim=(2, 3))[0]
            features.append(descriptor / descriptor.norm())
            poses.append(sample.map_from_body)
    if not features:
        raise DataError(f"no images in {', '.join(source.name for source in sources)} for the retrieval baseline")
    return torch.stack(features), poses
