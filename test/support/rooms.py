# SPDX-License-Identifier: Apache-2.0
"""Frames of a room whose every measurement is exact, for the tests of systems that solve for their pose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from helpers import ListSource
from training.data.dataset import PreparedDataset, prepare_dataset
from training.data.model_input import prepared_input
from vmloc_ros.core.frame import MODALITIES, Frame, PinholeCamera, PointCloud, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ModelInput, model_config
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

CPU = torch.device("cpu")
ORIGIN_M = (431_234.25, 5_412_345.5, 312.0)  # UTM
CODEC = PoseCodec(ORIGIN_M, 8.0, (0.8, 0.0, 0.6, 0.0))
TINY = model_config(
    "vmloc_dense",
    "shufflenet_v2_x0_5",
    hidden_dim=8,
    dropout=0.0,
    cell_blocks=1,
    cell_stride=4,
    lidar_stride=4,
)
OPTICAL = [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]  # forward = z
CAMERA = Pose.from_xyz_rpy([0.4, 0.1, 1.3], [0.02, 0.1, -0.2]) @ Pose.from_matrix(np.array(OPTICAL))
LIDAR = Pose.from_xyz_rpy([-0.2, 0.05, 1.9], [0.01, -0.03, 0.6])
MOUNTS = {"image": CAMERA, "depth": CAMERA, "lidar": LIDAR}
SIZE = (48, 64)
PREPROCESS = PreprocessConfig(MODALITIES, shortest_side=48)


def room_point(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Intersections of rays with the walls of a box of 24 x 16 x 6 m around the map's origin."""
    half = np.array([12.0, 8.0, 3.0])
    with np.errstate(divide="ignore", invalid="ignore"):  # of rays along a wall, and of cells without a ray
        steps = np.where(directions != 0, (np.sign(directions) * half - origin) / directions, np.inf)
        return origin + steps.min(axis=-1, keepdims=True) * directions


def in_room(number: int) -> Pose:
    """A pose in the map of UTM coordinates."""
    rng = np.random.default_rng(number)
    local = rng.uniform([-8, -4, -2], [8, 4, 0])
    return Pose.from_xyz_rpy(local + ORIGIN_M, rng.normal(0, [0.05, 0.05, 2.0]))


def room_frame(body: Pose, names: Sequence[str] = MODALITIES, seed: int = 0, size: tuple[int, int] = SIZE) -> Frame:
    """A frame of the room: exact depth and points, an image of noise."""
    rng = np.random.default_rng(seed)
    height, width = size
    camera = PinholeCamera(width, height, 0.9 * width, 0.9 * width, width / 2, height / 2)
    local = Pose(body.position_m - ORIGIN_M, body.quaternion_wxyz)
    v, u = np.indices(size)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], axis=-1)
    eye = local @ CAMERA
    towards = rays @ eye.rotation.T
    depth = np.linalg.norm(room_point(eye.position_m, towards) - eye.position_m, axis=-1) / np.linalg.norm(
        rays, axis=-1
    )
    scanner = local @ LIDAR
    beams = rng.normal(0, [1, 1, 0.15], (3000, 3))
    hits = (room_point(scanner.position_m, beams @ scanner.rotation.T) - scanner.position_m) @ scanner.rotation
    return Frame(
        1_700_000_000_000_000_000 + 100_000_000 * seed,
        rng.integers(0, 256, (*size, 3), np.uint8) if "image" in names else None,
        depth.astype(np.float32) if "depth" in names else None,
        PointCloud(hits.astype(np.float32), np.ones(len(hits), np.float32)) if "lidar" in names else None,
        camera,
        CAMERA.inverse() @ LIDAR,
    )


def in_map(pose: Pose, points: Tensor) -> Tensor:
    """Points ``(N, 3)`` in the body frame, relative to the map's origin."""
    local = pose.position_m - np.asarray(ORIGIN_M)
    return (points.double() @ torch.from_numpy(pose.rotation).T + torch.from_numpy(local)).float()


def prepared(samples: Sequence[Sample], preprocess: PreprocessConfig = PREPROCESS) -> PreparedDataset:
    return prepare_dataset([ListSource(samples, mounts=MOUNTS)], Preprocessor(preprocess), progress=False)


def room_data(present: Sequence[Sequence[str]], preprocess: PreprocessConfig = PREPROCESS) -> PreparedDataset:
    """A frame for each entry, with the named sensors."""
    poses = [in_room(number) for number in range(len(present))]
    frames = [room_frame(pose, names, number) for number, (pose, names) in enumerate(zip(poses, present, strict=True))]
    return prepared([Sample(frame, pose) for frame, pose in zip(frames, poses, strict=True)], preprocess)


def input_of(data: PreparedDataset, preprocess: PreprocessConfig, rows: Sequence[int] | None = None) -> ModelInput:
    chosen = torch.tensor(range(len(data)) if rows is None else rows)
    return prepared_input(*data.batch(chosen, CPU), Preprocessor(preprocess), intrinsics=data.intrinsics(chosen, CPU))
