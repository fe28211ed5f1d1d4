# SPDX-License-Identifier: Apache-2.0
"""Record of a training in the header of its checkpoint: data, poses, configuration and versions."""

from __future__ import annotations

import logging
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

logger = logging.getLogger(__name__)


def data_record(sources: Sequence[Source]) -> dict[str, Any]:
    """Names, sizes and reports of the training data, how its messages were read, and the first frame's extrinsics.

    The node compares readings and extrinsics with its own.
    """
    data = [{"name": source.name, "frames": len(source), **source.report} for source in sources]
    record: dict[str, Any] = {"data": data, "inputs": _common_readings(sources)}
    first = next(iter(sources[0]), None)
    pose = None if first is None else first.frame.camera_from_lidar
    if pose is None:
        return record
    values = {"position_m": pose.position_m.tolist(), "quaternion_wxyz": pose.quaternion_wxyz.tolist()}
    return {**record, "extrinsics": {"camera_from_lidar": values}}


def _common_readings(sources: Sequence[Source]) -> dict[str, Any]:
    """Readings of the sources by name, see :class:`RosbagSource`; the first that has one decides. Others have none."""
    common: dict[str, Any] = {}
    for source in sources:
        for name, reading in getattr(source, "readings", {}).items():
            if common.setdefault(name, reading) != reading:
                logger.info("%s: %s is %s, in recordings before it %s", source.name, name, reading, common[name])
    return common


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
