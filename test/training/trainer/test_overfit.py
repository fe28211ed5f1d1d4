# SPDX-License-Identifier: Apache-2.0
"""Every system overfits 32 real frames, and reproduces their poses in evaluation and on the node (slow)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ros_graph import served_poses

pytest.importorskip("rclpy", reason="rclpy is not installed")

from training.conversion.datasets import convert_seven_scenes
from training.evaluation.evaluate import evaluate_checkpoints
from training.trainer.train import train
from vmloc_ros.core.checkpoint import load_checkpoint, save_checkpoint
from vmloc_ros.core.models import REGISTRY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("ros_domain")]

FRAMES, EVERY = 32, 6
TOPICS = {"image": "/camera/image_raw", "depth": "/camera/depth/image_raw"}
CONFIG: dict[str, Any] = {
    "shared_by_systems": True,
    "model": {
        "backbone": "shufflenet_v2_x0_5",
        "latent_dim": 128,
        "hidden_dim": 128,
        "feature_dim": 256,
        "recurrent_dim": 64,
        "dropout": 0.0,
    },
    "pretrained": False,
    "preprocess": {"modalities": ["image", "depth"], "shortest_side": 64, "depth_range_m": [0.0, 5.0]},
    "augment": {"colour_jitter": 0.0, "measurement_dropout": 0.0, "modality_dropout": 0.0},
    "objective": {"kl_weight": 1e-4, "gamma": -3.0},
    "validation": {"every": 0},
    "optimizer": {"epochs": 80, "batch_size": 32, "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 20},
}
# MapNet's own spacing of 10 frames leaves few different triples in 32. VidLoc's clips are shortened, and its batches
# enlarged, because batch norm sees few different frames in a batch of a few long clips.
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "mapnet": {"model": {"clip_spacing": 2}},
    "vidloc": {"model": {"clip_length": 4}, "optimizer": {"batch_size": 64, "epochs": 160}},
    "vmloc_dense": {"model": {"cell_stride": 4}, "optimizer": {"epochs": 40}},
    "dense_image": {"model": {"cell_stride": 4}, "optimizer": {"epochs": 60}},
    "dense_lidar": {"model": {"cell_stride": 4}, "optimizer": {"epochs": 40}},
}
POSITION_LIMIT_M = {"dense_image": 0.1}  # rays of so small an image determine the heading well, distances less so


@pytest.fixture(scope="module")
def scene(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of every sixth frame of RedKitchen's held-out sequence; the numbers, and so the stamps, are kept."""
    recorded = real_data / "7scenes" / "redkitchen"
    folder = tmp_path_factory.mktemp("overfit") / "scene"
    sequence = folder / "seq-01"
    sequence.mkdir(parents=True)
    for name in ("TrainSplit.txt", "TestSplit.txt"):
        (folder / name).write_text("sequence1\n")
    numbers = sorted({path.name[:12] for path in (recorded / "seq-02").iterdir()})[: FRAMES * EVERY : EVERY]
    for path in (recorded / "seq-02").iterdir():
        if path.name[:12] in numbers:
            (sequence / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("system", sorted(REGISTRY))
def test_32_real_frames_are_learnt_reloaded_and_served(system: str, scene: Path, tmp_path: Path) -> None:
    config, checkpoint = tmp_path / "config.yaml", tmp_path / "model.safetensors"
    own = OWN.get(system, {})
    values = {name: {**x, **own.get(name, {})} if isinstance(x, dict) else x for name, x in CONFIG.items()}
    values["model"]["name"] = system
    config.write_text(yaml.safe_dump(values))
    # Ten times the same frames: an epoch of more than one step, hence fewer checkpoints.
    train(config_files=[config], overrides=None, data=[scene] * 10, out=checkpoint, device="cpu", progress=False)

    report = evaluate_checkpoints([checkpoint], [scene], out=tmp_path / "evaluation", device="cpu", progress=False)
    errors = report.metrics
    assert errors["frames"] == FRAMES
    assert errors["median_position_m"] < POSITION_LIMIT_M.get(system, 0.02), errors
    assert errors["median_rotation_deg"] < 1.0, errors

    header, model = load_checkpoint(checkpoint)
    save_checkpoint(tmp_path / "again.safetensors", header, model.state_dict())
    header_again, model_again = load_checkpoint(tmp_path / "again.safetensors")
    assert header_again == header
    weights = model_again.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())

    bag = tmp_path / "bag"
    convert_seven_scenes(scene, "test", bag, progress=False)
    topics = [TOPICS[name] for name in model.modalities] + ["/camera/camera_info"] * model.needs_geometry
    poses = served_poses(checkpoint, bag, topics, tmp_path)
    expected = np.loadtxt(report.folder / "estimate.tum")
    assert len(poses) == FRAMES
    positions = [poses[stamp].position_m for stamp in sorted(poses)]
    np.testing.assert_allclose(positions, expected[:, 1:4], atol=1e-3)
