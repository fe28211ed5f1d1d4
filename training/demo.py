# SPDX-License-Identifier: Apache-2.0
"""``vmloc demo``: replay an unseen simulated drive over DDS into the node, and compare its poses with the truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluation.figures import save_trajectory_plot
from training.evaluation.metrics import pose_errors
from training.output import write_text
from training.simulation import simulate
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.errors import CheckpointError, DataError, VmlocError
from vmloc_ros.core.geometry import Pose, interpolate_poses
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.resources import share_path

# Training takes seeds from 1 on; the demo's are greater than any of them.
_FIRST_UNSEEN_SEED = 1_000_000
_NODE = "/vmloc_node"
_IMAGE, _CAMERA_INFO, _CLOUD, _TRUTH = "/camera/image_raw", "/camera/camera_info", "/lidar/points", "/ground_truth/pose"
_POSE = f"{_NODE}/pose"
_RECORDED = (_POSE, f"{_NODE}/pose_with_covariance", f"{_NODE}/path", "/tf", _CAMERA_INFO, _TRUTH)
_START_LIMIT_S = 120.0
_WALLS_ABOVE_M = 0.5  # the street itself lies at height 0
_SHIPPED_CHECKPOINT = ("resource", "dense_street.safetensors")
_SHIPPED_BEAMS = 16  # of the lidar that it was trained with


class DemoError(VmlocError):
    """The node or the player failed."""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Results of the drive; the fields are the keys of ``report.json``.

    Attributes:
        latency_p50_ms: from the player's publication of an image to the arrival of its pose, over DDS and back, with
            the wait for the image's cloud.
    """

    seed: int
    images: int
    poses: int
    median_position_m: float
    median_rotation_deg: float
    p95_position_m: float
    p95_rotation_deg: float
    latency_p50_ms: float
    latency_p95_ms: float

    def text(self) -> str:
        """The report as text."""
        return "\n".join(
            [
                f"poses received   {self.poses} of {self.images} images "
                f"({self.images - self.poses} withheld as unsure, or lost)",
                f"position error   median {self.median_position_m:.3f} m, 95th percentile {self.p95_position_m:.3f} m",
                f"rotation error   median {self.median_rotation_deg:.2f} deg, "
                f"95th percentile {self.p95_rotation_deg:.2f} deg",
                f"latency          median {self.latency_p50_ms:.0f} ms, 95th percentile {self.latency_p95_ms:.0f} ms "
                "(image out to pose in, with the wait for its lidar sweep)",
            ]
        )


def run_demo(
    *,
    seed: int,
    out: Path,
    checkpoint: Path | None = None,
    beams: int = _SHIPPED_BEAMS,
    rate: float = 1.0,
    device: str = "auto",
) -> DemoReport:
    """Simulate a drive, replay it into the node, and report the errors of its poses.

    Writes into ``out``: ``traversal`` (the drive, rosbag2), ``results`` (the node's poses, rosbag2), ``node.log``,
    ``report.json`` and ``trajectory.png``.

    Args:
        beams: of the simulated lidar; as many as of the lidar that the checkpoint was trained with.

    Raises:
        DemoError: the node or the player failed.
        VmlocError: the checkpoint or the output folder is at fault.
    """
    checkpoint = checkpoint or share_path(*_SHIPPED_CHECKPOINT)
    if not checkpoint.is_file():
        raise CheckpointError(
            f"checkpoint {checkpoint} does not exist; train one with `vmloc train` or correct the path"
        )
    out.mkdir(parents=True, exist_ok=True)
    traversal, results = out / "traversal", out / "results"
    print(f"[1/3] simulating a drive that the checkpoint has not seen (seed {seed}) -> {traversal}", flush=True)
    simulate(traversal, seed=_FIRST_UNSEEN_SEED + seed, beams=beams, overwrite=True)
    environment = _environment()
    print(
        f"[2/3] replaying it over DDS into vmloc_node -> {results} "
        f"(watch with ROS_DOMAIN_ID={environment['ROS_DOMAIN_ID']} rviz2 -d config/vmloc.rviz)",
        flush=True,
    )
    with _running_node(checkpoint, device, out / "node.log", environment):
        _play(traversal, results, rate, environment, out / "node.log")
    print(f"[3/3] comparing with ground truth -> {out / 'report.json'}, {out / 'trajectory.png'}", flush=True)
    return _report(seed, traversal, results, out)


def _environment() -> dict[str, str]:
    """Environment with a ROS domain of its own on this machine alone, unless the user has set one."""
    environment = dict(os.environ)
    environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    environment.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    return environment


@contextmanager
def _running_node(checkpoint: Path, device: str, log: Path, environment: dict[str, str]) -> Iterator[None]:
    parameters = {"checkpoint": checkpoint.resolve(), "device": device, "image_topic": _IMAGE, "cloud_topic": _CLOUD}
    command = [sys.executable, "-m", "vmloc_ros.node", "--ros-args"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={value}"]
    with log.open("w") as stream:
        node = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait_until_active(node, log)
            yield
            if node.poll() is not None:
                raise DemoError(f"the node ended early with exit code {node.returncode}: {_tail(log)}")
        finally:
            node.send_signal(signal.SIGTERM)  # a shell lets background jobs ignore SIGINT
            try:
                node.wait(timeout=15)
            except subprocess.TimeoutExpired:
                node.kill()


def _wait_until_active(node: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the node logs that it is active; loading torch and the model takes seconds."""
    deadline_s = time.monotonic() + _START_LIMIT_S
    while "now active" not in log.read_text(errors="replace"):
        if node.poll() is not None:
            raise DemoError(f"the node did not start, exit code {node.returncode}: {_tail(log)}")
        if time.monotonic() > deadline_s:
            raise DemoError(f"the node is not active after {_START_LIMIT_S:.0f} s; its last line: {_tail(log)}")
        time.sleep(0.1)


def _play(traversal: Path, results: Path, rate: float, environment: dict[str, str], node_log: Path) -> None:
    command = [sys.executable, "-m", "training.cli", "replay", str(traversal), "--rate", str(rate)]
    command += ["--wait-for", _IMAGE, _CLOUD, "--record", str(results), "--overwrite", "--record-topics", *_RECORDED]
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise DemoError(f"the player failed with exit code {code}; the node's last line: {_tail(node_log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"{log} is empty"


def _report(seed: int, traversal: Path, results: Path, out: Path) -> DemoReport:
    images = [stamp for stamp, _, _ in _received(traversal, _CAMERA_INFO)]
    truth_stamps, true_poses = _poses(traversal, _TRUTH)
    stamps, estimates = _poses(results, _POSE)
    truth = interpolate_poses(truth_stamps, true_poses, np.asarray(stamps, np.int64))
    pairs = [(t, e) for t, e in zip(truth, estimates, strict=True) if t is not None]
    if not pairs:
        raise DemoError(f"no pose was received for {len(images)} images; see {out / 'node.log'}")
    known, estimated = [t for t, _ in pairs], [e for _, e in pairs]
    summary = pose_errors(known, estimated).summary()
    latency_ms = _latencies_ms(results)
    report = DemoReport(
        seed=seed,
        images=len(images),
        poses=len(stamps),
        median_position_m=summary["median_position_m"],
        median_rotation_deg=summary["median_rotation_deg"],
        p95_position_m=summary["p95_position_m"],
        p95_rotation_deg=summary["p95_rotation_deg"],
        latency_p50_ms=float(np.percentile(latency_ms, 50)),
        latency_p95_ms=float(np.percentile(latency_ms, 95)),
    )
    write_text(out / "report.json", json.dumps(asdict(report), indent=2) + "\n")
    title = (
        f"vmloc_node on an unseen simulated drive (seed {seed}): {report.poses} of {report.images} images localized,\n"
        f"median error {report.median_position_m:.3f} m, {report.median_rotation_deg:.2f} deg"
    )
    street = RosbagSource(traversal, SourceOptions(), ("image", "lidar")).map_points(every=10)
    walls = street[street[:, 2] > _WALLS_ABOVE_M]
    save_trajectory_plot(out / "trajectory.png", known, estimated, title, walls)
    return report


def _latencies_ms(results: Path) -> list[float]:
    """Time from the camera info, which the player sends with the image of that stamp, to the arrival of the pose."""
    sent = {stamp: received for stamp, received, _ in _received(results, _CAMERA_INFO)}
    latencies = [(at - sent[stamp]) / 1e6 for stamp, at, _ in _received(results, _POSE) if stamp in sent]
    if not latencies:
        raise DataError(f"{results} holds no pose with a stamp of {_CAMERA_INFO}")
    return latencies


def _poses(bag: Path, topic: str) -> tuple[list[int], list[Pose]]:
    """Stamps and poses of a PoseStamped topic, in order of stamp."""
    found = {stamp: decode_pose(message) for stamp, _, message in _received(bag, topic)}
    stamps = sorted(found)
    return stamps, [found[stamp] for stamp in stamps]


def _received(bag: Path, topic: str) -> Sequence[tuple[int, int, Any]]:
    """``(header stamp, receive time, message)`` of a topic, nanoseconds."""
    with open_bag(bag) as reader:
        connections = [connection for connection in reader.connections if connection.topic == topic]
        messages = reader.messages(connections=connections) if connections else []
        found = ((received, reader.deserialize(data, c.msgtype)) for c, received, data in messages)
        return [(stamp_ns(message.header), received, message) for received, message in found]
