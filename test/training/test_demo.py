# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: simulator, player, DDS, node and report, with the checkpoint that ships."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from training.cli import main
from training.demo import run_demo
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.resources import share_path

pytestmark = pytest.mark.usefixtures("ros_domain")


@pytest.mark.timeout(600)
def test_the_shipped_checkpoint_localizes_an_unseen_drive(tmp_path: Path) -> None:
    assert main(["demo", "--seed", "0", "--out", str(tmp_path), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] > 200
    assert 0.9 * report["images"] <= report["poses"] <= report["images"]  # about 5 % are withheld
    assert report["median_position_m"] <= 0.1
    assert report["median_rotation_deg"] <= 0.3
    assert report["median_position_m"] <= report["p95_position_m"]
    assert 0 < report["latency_p50_ms"] <= report["latency_p95_ms"]
    picture = cv2.imread(str(tmp_path / "trajectory.png"))
    assert min(picture.shape[:2]) >= 600
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    with open_bag(tmp_path / "results") as reader:
        assert reader.topics["/vmloc_node/pose"].msgcount == report["poses"]


@pytest.mark.parametrize("name", ["dense_street", "vmloc_street"])
def test_the_shipped_checkpoints_are_small(name: str) -> None:
    assert share_path("resource", f"{name}.safetensors").stat().st_size <= 12e6


def test_a_missing_checkpoint_is_an_error_before_anything_is_simulated(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["demo", "--checkpoint", str(tmp_path / "none.safetensors"), "--out", str(out)]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert not out.exists()


def test_a_damaged_checkpoint_stops_the_demo_with_the_nodes_reason(tmp_path: Path, monkeypatch) -> None:
    from training import demo

    checkpoint = tmp_path / "damaged.safetensors"
    checkpoint.write_bytes(b"not a checkpoint")
    monkeypatch.setattr(demo, "simulate", lambda *_, **__: None)
    with pytest.raises(demo.DemoError, match=r"did not start.*not a vmloc_ros checkpoint"):
        run_demo(seed=0, out=tmp_path / "out", checkpoint=checkpoint)
