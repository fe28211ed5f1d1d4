# SPDX-License-Identifier: Apache-2.0
"""The main job on real 7-Scenes frames: evaluate reads the folder, the node a bag of it; their poses must agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ros_graph import served_poses

pytest.importorskip("rclpy", reason="rclpy is not installed")

from training.conversion.datasets import convert_seven_scenes
from training.evaluation.evaluate import evaluate_checkpoints
from training.sources.options import SourceOptions
from training.testing import write_random_checkpoint

pytestmark = pytest.mark.usefixtures("ros_domain")

IMAGE, DEPTH = "/camera/image_raw", "/camera/depth/image_raw"


def test_the_node_gives_the_poses_of_evaluate(real_data: Path, tmp_path: Path) -> None:
    scene = real_data / "7scenes" / "redkitchen"
    checkpoint, bag = tmp_path / "random.safetensors", tmp_path / "bag"
    write_random_checkpoint(checkpoint, ("image", "depth"), body_frame="camera_optical_frame")
    convert_seven_scenes(scene, "test", bag, options=SourceOptions(stride=10), progress=False)
    report = evaluate_checkpoints(
        [checkpoint], [scene], out=tmp_path / "evaluation", overrides=["source.stride=10"], device="cpu", progress=False
    )
    served = served_poses(checkpoint, bag, [IMAGE, DEPTH], tmp_path)
    expected = np.loadtxt(report.folder / "estimate.tum")
    assert len(served) == len(expected) == report.metrics["frames"] == 20
    poses = [served[stamp] for stamp in sorted(served)]
    np.testing.assert_allclose(np.array(sorted(served)) * 1e-9, expected[:, 0], atol=1e-6)
    np.testing.assert_allclose([pose.position_m for pose in poses], expected[:, 1:4], atol=1e-3)
    quaternions = np.array([pose.quaternion_wxyz for pose in poses])
    alignment = np.abs(np.sum(quaternions * expected[:, [7, 4, 5, 6]], axis=1))
    np.testing.assert_allclose(alignment, 1, atol=1e-6)
