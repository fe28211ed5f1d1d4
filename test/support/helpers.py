# SPDX-License-Identifier: Apache-2.0
"""Small frames and sources for the tests of the model and training side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.objectives import ObjectiveConfig, objective_config_type
from vmloc_ros.core.confidence import Confidence
from vmloc_ros.core.frame import Frame, PinholeCamera, PointCloud, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ModelConfig, model_config, own_settings

torch.set_num_threads(1)  # the tests share their machine; small tensors gain nothing from threads


def float32_tolerance(terms: int) -> float:
    """How far two orders of adding so many float32 products may be apart, relative to the sum of their magnitudes.

    Each addition rounds by half an epsilon of all that is added, at most. Of a network give the longest sum: rounding
    is usually near the root of this bound, which leaves room for that of the other layers.
    """
    return terms * float(np.finfo(np.float32).eps)


def yaw_pose(x_m: float, y_m: float = 0.0, yaw_deg: float = 0.0, z_m: float = 0.0) -> Pose:
    return Pose.from_xyz_rpy([x_m, y_m, z_m], [0.0, 0.0, np.radians(yaw_deg)])


def random_frame(seed: int = 0, size: tuple[int, int] = (60, 80), names: Sequence[str] = ("image", "lidar")) -> Frame:
    """A frame of noise with the given modalities, intrinsics and extrinsics."""
    rng = np.random.default_rng(seed)
    height, width = size
    xyz = rng.normal(0, 8, (500, 3)).astype(np.float32)
    cloud = PointCloud(xyz, rng.uniform(0, 255, 500).astype(np.float32))
    return Frame(
        stamp_ns=1_700_000_000_000_000_000 + seed,
        image=rng.integers(0, 256, (height, width, 3), np.uint8) if "image" in names else None,
        depth_m=rng.uniform(0.5, 8, (height, width)).astype(np.float32) if "depth" in names else None,
        cloud=cloud if "lidar" in names else None,
        camera=PinholeCamera(width, height, 50.0, 50.0, (width - 1) / 2, (height - 1) / 2),
        camera_from_lidar=Pose.from_matrix(np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])),
    )


def p_values(confidence: Confidence, modalities: tuple[str, ...], *evidence: Any) -> NDArray[np.float64] | None:
    """Confidence ``(B,)`` of estimates; further arguments as of :meth:`Confidence.neg_log_p_value`."""
    neg_log_p = confidence.neg_log_p_value(modalities, *evidence)
    return None if neg_log_p is None else confidence.p_value(modalities, neg_log_p)


class ListSource:
    """A data source that holds its samples; its name, frames and mounts can be set."""

    def __init__(
        self,
        samples: Sequence[Sample],
        name: str = "list",
        body_frame: str = "base_link",
        mounts: Mapping[str, Pose] | None = None,
    ) -> None:
        self.samples, self.name = list(samples), name
        self.map_frame, self.body_frame = "map", body_frame
        self.modalities: tuple[str, ...] = ("image", "lidar")
        self.mounts = dict(mounts or {})
        self.report: dict[str, int] = {}
        self.readings: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def poses(self) -> list[Pose]:
        return [sample.map_from_body for sample in self.samples]

    def stamps_ns(self) -> list[int]:
        return [sample.frame.stamp_ns for sample in self.samples]

    def fingerprint(self) -> str:
        return f"{self.name} {self.stamps_ns()}"


def tiny_objective(system: str, **settings: object) -> ObjectiveConfig:
    """The configuration of the named system's objective, with those of the settings that it has."""
    config = objective_config_type(system)
    names = {field.name for field in fields(config)}
    return config(**{name: value for name, value in settings.items() if name in names})


def tiny_config(system: str, **settings: object) -> ModelConfig:
    """A small model of the named system, with those of the settings that it has."""
    return model_config(**own_settings({"name": system, "backbone": "shufflenet_v2_x0_5", **settings}))


def without_padding(text: str) -> str:
    """Text whose Markdown tables have cells between single spaces."""
    return re.sub(" {2,}", " ", text)
