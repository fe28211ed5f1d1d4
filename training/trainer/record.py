# SPDX-License-Identifier: Apache-2.0
"""Record of a training in the header of its checkpoint: data, poses, configuration and versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchvision

from training.config import TrainConfig
from training.data.coverage import pose_record
from training.data.splits import Split
from training.sources.base import Source
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.geometry import Pose


def data_record(sources: Sequence[Source]) -> dict[str, Any]:
    """Names, sizes and reports of the training data, and the extrinsics of the first frame.

    The node compares the extrinsics with its own.
    """
    data = [{"name": source.name, "frames": len(source), **source.report} for source in sources]
    first = next(iter(sources[0]), None)
    pose = None if first is None else first.frame.camera_from_lidar
    if pose is None:
        return {"data": data}
    values = {"position_m": pose.position_m.tolist(), "quaternion_wxyz": pose.quaternion_wxyz.tolist()}
    return {"data": data, "extrinsics": {"camera_from_lidar": values}}


def training_record(
    config: TrainConfig, split: Split, own: Sequence[Pose], others: Sequence[Pose], scale_m: float
) -> dict[str, Any]:
    """Poses of the training frames and of the held-out ones, configuration and versions.

    Args:
        own: poses of the training data.
        others: poses of the data that the split's held-out rows index.
        scale_m: scale of the map's codec.
    """
    train = [own[i] for i in split.train.tolist()]
    held_out = [(train, [others[i] for i in split.held_out.tolist()])] if len(split.held_out) else []
    held_out += [([own[i] for i in rows.tolist()], [own[i] for i in part.tolist()]) for rows, part in split.folds]
    return {
        **pose_record(train, held_out, scale_m),
        "frames": len(train),
        "validation_frames": len(split.held_out),
        "config": to_mapping(config),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
