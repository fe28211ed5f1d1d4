# SPDX-License-Identifier: Apache-2.0
"""Frames through the node's worker, with the node in this process: counts, latencies, withheld and invalid poses."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from helpers import random_frame
from ros_graph import localizer_of_the_node, node_in_process, peer, process_bundle, set_parameter, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from rclpy.lifecycle import TransitionCallbackReturn
from tf2_msgs.msg import TFMessage

from image_node import NODE, PERIOD_NS, STARTS_NS, in_distribution_frames, novel_frames, stamps_on
from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import image_message
from vmloc_ros.core.checkpoint import save_checkpoint
from vmloc_ros.core.frame import IMAGE, Estimate, Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.messages import decode_pose
from vmloc_ros.core.preprocessing import PreprocessConfig
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.node import worker
from vmloc_ros.node.resources import load_configured_model

pytestmark = pytest.mark.usefixtures("ros_domain")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    write_random_checkpoint(path, ("image", "lidar"))
    return path


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "vidloc.safetensors"
    write_random_checkpoint(path, ("image", "lidar"), system="vidloc")
    return path


def frames_from(start_ns: int, count: int) -> list[Frame]:
    return [replace(random_frame(i), stamp_ns=start_ns + i * PERIOD_NS) for i in range(count)]


def process(node, frame: Frame, age_s: float = 0.0) -> None:
    """Run an image that came ``age_s`` ago through the node's worker."""
    message = image_message(frame.stamp_ns, "camera", frame.image, "rgb8")
    arrival_ns = time.monotonic_ns() - round(age_s * 1e9)
    process_bundle(node, Bundle(frame.stamp_ns, arrival_ns, {"image": (frame.stamp_ns, message)}))


def start_with_clips(node, checkpoint) -> None:
    set_parameter(node, "checkpoint", str(checkpoint))
    set_parameter(node, "lookahead_frames", 2)
    assert node.start()


def test_counts_and_latencies_are_right_where_a_frame_yields_no_one_or_several_poses(idle_node, clip_checkpoint):
    start_with_clips(idle_node, clip_checkpoint)
    for age_s, frame in zip((500, 400, 300, 200, 100), frames_from(next(STARTS_NS), 5), strict=True):
        process(idle_node, frame, age_s)
    values = idle_node._session.diagnose()[2]
    assert values["poses published"] == 3
    assert float(values["latency p50 [ms]"]) == pytest.approx(400e3, abs=20e3)
    assert float(values["latency p95 [ms]"]) == pytest.approx(500e3, abs=20e3)
    process(idle_node, frames_from(next(STARTS_NS), 1)[0], 0)  # a gap: the two that wait are localized
    values = idle_node._session.diagnose()[2]
    assert values["poses published"] == values["pose rate [Hz]"] + 3 == 5
    assert float(values["latency p50 [ms]"]) == pytest.approx(300e3, abs=20e3)


def test_rejected_frames_in_between_change_no_other_frames_latency(idle_node, clip_checkpoint):
    start_with_clips(idle_node, clip_checkpoint)
    frames = frames_from(next(STARTS_NS), 8)
    for age_s, frame in zip((800, 700), frames[:2], strict=True):
        process(idle_node, frame, age_s)
    for frame in frames[2:7]:
        process(idle_node, replace(frame, image=np.zeros((2, 0, 3), np.uint8)), 1)
    process(idle_node, frames[7], 0)
    values = idle_node._session.diagnose()[2]
    assert (values["poses published"], values["rejected: undecodable"]) == (1, 5)
    assert float(values["latency p95 [ms]"]) == pytest.approx(800e3, abs=20e3)


def test_every_pose_that_cannot_be_published_is_counted(idle_node, clip_checkpoint):
    set_parameter(idle_node, "base_frame", "no_such_frame")
    start_with_clips(idle_node, clip_checkpoint)
    for frame in (*frames_from(next(STARTS_NS), 2), *frames_from(next(STARTS_NS), 1)):
        process(idle_node, frame, 0)
    values = idle_node._session.diagnose()[2]
    assert (values["poses published"], values["rejected: not localized"]) == (0, 2)


@pytest.mark.parametrize(("row", "value"), [(0, np.nan), (5, np.nan), (2, 0.0)])
def test_no_covariance_that_is_not_finite_or_not_positive_is_published(row, value, idle_node, checkpoint, monkeypatch):
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    assert idle_node.start()
    (frame,) = frames_from(next(STARTS_NS), 1)
    covariance = np.diag(np.ones(6))
    covariance[row, row] = value
    estimate = Estimate(frame.stamp_ns, Pose.identity(), covariance, ("image",))
    monkeypatch.setattr(idle_node._resources.model, "feed", lambda frame, batch: [estimate])
    process(idle_node, frame, 0)
    values = idle_node._session.diagnose()[2]
    assert (values["poses published"], values["rejected: not localized"], values["transforms published"]) == (0, 1, 0)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_dropped_sensor_is_reported_and_its_pose_withheld_where_all_are_required(
    allowed, idle_node, checkpoint, monkeypatch
):
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    set_parameter(idle_node, "allow_degraded", allowed)
    set_parameter(idle_node, "modalities", ["image"])  # or frames without a scan would be rejected
    assert idle_node.start()
    (frame,) = frames_from(next(STARTS_NS), 1)
    estimate = Estimate(
        frame.stamp_ns, Pose.identity(), np.eye(6), ("image",), confidence=0.5, dropped_sensors=("lidar",)
    )
    monkeypatch.setattr(idle_node._resources.model, "feed", lambda frame, batch: [estimate])
    process(idle_node, frame, 0)
    _, text, values = idle_node._session.diagnose()
    if allowed:
        assert (values["poses published"], values["dropped sensors"]) == (1, "lidar")
        assert "dropped lidar, unlike the training data" in text
    else:
        assert (values["poses published"], values["poses withheld"]) == (0, 1)
        assert "lidar unlike the training data, and allow_degraded is false" in text


def test_deactivation_drops_the_clip(idle_node, clip_checkpoint):
    start_with_clips(idle_node, clip_checkpoint)
    before, after = frames_from(next(STARTS_NS), 4)[:2], frames_from(next(STARTS_NS), 3)
    for frame in before:
        process(idle_node, frame, 0)
    assert idle_node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert idle_node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    for frame in after:
        process(idle_node, frame, 0)
    assert idle_node._session.diagnose()[2]["poses published"] == 1


def test_a_checkpoint_without_confidence_model_publishes_every_pose_with_a_warning(idle_node, tmp_path, capfd):
    path = tmp_path / "plain.safetensors"
    write_random_checkpoint(path, (IMAGE,))
    set_parameter(idle_node, "checkpoint", str(path))
    assert idle_node.start()
    assert re.search(r"WARN.*plain.safetensors has no confidence model", capfd.readouterr().err)
    for frame in novel_frames(3, next(STARTS_NS)):
        process(idle_node, frame)
    level, _, values = idle_node._session.diagnose()
    assert level == DiagnosticStatus.OK
    assert (values["poses published"], values["poses withheld"]) == (3, 0)
    assert values["confidence"] == "none: the checkpoint has no confidence model"


def test_a_limit_on_the_covariance_withholds_poses_of_any_checkpoint(idle_node, tmp_path):
    path = tmp_path / "plain.safetensors"
    write_random_checkpoint(path, (IMAGE,))  # with residuals of 1 m along each axis
    set_parameter(idle_node, "checkpoint", str(path))
    set_parameter(idle_node, "max_position_std_m", 0.9)
    assert idle_node.start()
    for frame in novel_frames(3, next(STARTS_NS)):
        process(idle_node, frame)
    level, message, values = idle_node._session.diagnose()
    assert level == DiagnosticStatus.WARN
    assert re.match(r"lost: position std \S+ m above 0.9 m for 0.2 s", message)
    assert (values["poses published"], values["poses withheld"]) == (0, 3)


def test_transforms_so_far_are_forgotten_when_stamps_jump_back(idle_node, checkpoint, monkeypatch):
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    assert idle_node.start()  # tf_mode is map_to_base: no odometry
    forgotten = []
    monkeypatch.setattr(idle_node._resources._lookup, "forget", lambda: forgotten.append(True))
    later, earlier = frames_from(next(STARTS_NS), 2)[::-1]
    process(idle_node, later)
    assert not forgotten
    process(idle_node, earlier)
    assert forgotten


def test_the_end_of_being_lost_is_logged_where_its_beginning_was(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now_s)
    node = MagicMock()
    log = worker._LostLog(node)
    for _ in range(20):  # ten times a second
        log.lost("confidence 0.04 below 0.05")
        log.found()
        now_s += 0.1
    assert node.get_logger().warning.call_count == node.get_logger().info.call_count == 1
    now_s += 5.0
    log.lost("confidence 0.03 below 0.05")
    log.found()
    assert node.get_logger().warning.call_count == node.get_logger().info.call_count == 2


def write_bursting_checkpoint(path: Path, frames: Sequence[Frame]) -> list[bool]:
    """Write a model whose position overflows while one hidden unit is active; returns for which frames it is."""
    header = write_random_checkpoint(path, (IMAGE,))
    localizer = Localizer.load(path, "cpu")
    model, hidden = localizer.model, []
    first, last = [layer for layer in model.position if isinstance(layer, torch.nn.Linear)][-2:]
    handle = last.register_forward_hook(
        lambda layer, inputs, output: hidden.append(inputs[0].reshape(-1, len(first.bias)))
    )
    localizer.warm_up()
    for frame in frames:
        localizer.localize(frame)
    handle.remove()
    is_active = torch.stack([(x > 0).any(dim=0) for x in hidden])  # also for samples of the posterior
    useful = ~is_active[0] & is_active[1:].any(dim=0) & ~is_active[1:].all(dim=0)
    unit = int(useful.nonzero()[0])
    with torch.no_grad():
        first.weight[unit] *= 1e6
        first.bias[unit] *= 1e6
        last.weight[:, unit] = 3e38
    save_checkpoint(path, header, model.state_dict())
    return is_active[1:, unit].tolist()


def test_no_pose_that_is_not_finite_is_published(idle_node, tmp_path):
    frames = in_distribution_frames(10)
    bursts = write_bursting_checkpoint(tmp_path / "bursting.safetensors", frames)
    set_parameter(idle_node, "checkpoint", str(tmp_path / "bursting.safetensors"))
    good = [frame.stamp_ns for frame, burst in zip(frames, bursts, strict=True) if not burst]
    with peer() as us:
        topics = {
            f"{NODE}/pose": PoseStamped,
            f"{NODE}/pose_with_covariance": PoseWithCovarianceStamped,
            "/tf": TFMessage,
        }
        for topic, kind in topics.items():
            us.collect(kind, topic)
        assert idle_node.start()
        for topic in topics:
            wait_until(lambda topic=topic: idle_node.count_subscribers(topic), f"us on {topic}")
        us.wait_for_peers([], list(topics))
        for frame in frames:
            process(idle_node, frame)
        for topic in topics:
            wait_until(lambda topic=topic: len(us.received[topic]) >= len(good), topic)
        assert stamps_on(us, f"{NODE}/pose") == stamps_on(us, f"{NODE}/pose_with_covariance") == good
        assert len(us.received["/tf"]) == len(good)
        for message in us.received[f"{NODE}/pose_with_covariance"]:
            assert np.isfinite(decode_pose(message).matrix).all()
            assert np.isfinite(message.pose.covariance).all()
    values = idle_node._session.diagnose()[2]
    assert (values["poses published"], values["rejected: not localized"]) == (len(good), len(frames) - len(good))


def test_a_frame_goes_to_the_model_that_it_was_prepared_for(tmp_path, monkeypatch):
    """A model of another image size takes over while a frame is between the two threads."""
    paths = {side: tmp_path / f"{side}.safetensors" for side in (64, 96)}
    for side, path in paths.items():
        write_random_checkpoint(path, preprocess=PreprocessConfig(modalities=("image",), shortest_side=side), seed=side)
    with node_in_process({"checkpoint": paths[64], "device": "cpu"}) as node:
        assert node.start()
        worker, resources, published = node._session._worker, node._resources, []
        monkeypatch.setattr(resources.outputs, "publish", lambda stamp, pose, covariance: published.append(pose))
        frames = in_distribution_frames(2)
        messages = [image_message(frame.stamp_ns, "camera", frame.image, "rgb8") for frame in frames]
        first, second = (
            Bundle(f.stamp_ns, 0, {"image": (f.stamp_ns, m)}) for f, m in zip(frames, messages, strict=True)
        )
        prepared = worker.prepare(first)
        resources.adopt(load_configured_model(node, replace(resources.config, checkpoint=str(paths[96]))))
        worker.localize(prepared)
        worker.localize(worker.prepare(second))
        for pose, frame, path in zip(published, frames, paths.values(), strict=True):
            expected = localizer_of_the_node(path).localize(frame).map_from_body
            np.testing.assert_allclose(pose.matrix, expected.matrix, atol=1e-9)
