# SPDX-License-Identifier: Apache-2.0
"""Scenes to reproduce tables on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from helpers import yaw_pose
from training.reproduction.scenes import TableScene


def write_scene(root: Path, name: str, frames: int = 8) -> Path:
    """A 7-Scenes folder: sequence 1 to train on, 2 to test on."""
    for sequence in (1, 2):
        folder = root / name / f"seq-0{sequence}"
        folder.mkdir(parents=True)
        for number in range(frames):
            rng = np.random.default_rng([sequence, number])
            stem = str(folder / f"frame-{number:06d}")
            cv2.imwrite(f"{stem}.color.png", rng.integers(0, 256, (36, 48, 3), np.uint8))
            cv2.imwrite(f"{stem}.depth.png", rng.integers(500, 3000, (36, 48)).astype(np.uint16))
            np.savetxt(f"{stem}.pose.txt", yaw_pose(0.1 * number, 0.0, number).matrix)
    (root / name / "TrainSplit.txt").write_text("sequence1\n")
    (root / name / "TestSplit.txt").write_text("sequence2\n")
    return root / name


def scene_of(kind: str = "7scenes", **changes: Any) -> TableScene:
    files = {"7scenes": "seven_scenes.yaml", "robotcar": "robotcar.yaml", "bags": "bags.yaml"}
    scene = TableScene("somewhere", kind, files[kind], (), (), ("train", "test"), {"somewhere": None})
    return dataclasses.replace(scene, **changes)
