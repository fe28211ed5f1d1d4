# SPDX-License-Identifier: Apache-2.0
"""Image retrieval as a baseline for any checkpoint: the pose of the nearest training image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.evaluation.metrics import PoseErrors, pose_errors
from training.sources.base import Source
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ModelInput, model_config
from vmloc_ros.core.models.nearest import NearestImage
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.progress import with_progress


def nearest_image_errors(
    train: Sequence[Source],
    test: Sequence[Source],
    backbone: str,
    pretrained: bool | str,
    progress: bool = True,
) -> PoseErrors:
    """Errors when each test image gets the pose of its nearest training image (cosine similarity, exact search).

    Raises:
        DataError: a side has no images.
        ModelError: the backbone is unknown, or its weights are missing.
    """
    preprocessor = Preprocessor(PreprocessConfig(modalities=(IMAGE,)))
    model = NearestImage(model_config("nearest", backbone), preprocessor.channels, pretrained)
    features, poses = _describe(model, preprocessor, train, progress)
    model.store_frames(
        features,
        np.stack([pose.position_m for pose in poses]),
        np.stack([pose.quaternion_wxyz for pose in poses]),
    )
    features, truth = _describe(model, preprocessor, test, progress)
    found = model.retrieve(features)
    return pose_errors(truth, [Pose(p, q) for p, q in zip(found.positions_m, found.quaternions_wxyz, strict=True)])


@torch.inference_mode()
def _describe(
    model: NearestImage, preprocessor: Preprocessor, sources: Sequence[Source], progress: bool
) -> tuple[Tensor, list[Pose]]:
    """Descriptors ``(N, F)`` and poses of all frames that have an image."""
    features, poses = [], []
    for source in sources:
        for sample in with_progress(source, len(source), f"features of {source.name}", "frames", disable=not progress):
            if sample.frame.image is None:
                continue
            batch = ModelInput(preprocessor([sample.frame])[0], {IMAGE: torch.ones(1, dtype=torch.bool)})
            features.append(model.describe(batch)[0])
            poses.append(sample.map_from_body)
    if not features:
        raise DataError(f"no images in {', '.join(source.name for source in sources)} for the retrieval baseline")
    return torch.stack(features), poses
