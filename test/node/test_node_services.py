# SPDX-License-Identifier: Apache-2.0
"""The node's services over real DDS, with the node in a process of its own."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from ros_graph import localizer_of_the_node, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Path as PathMessage
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from image_node import (
    IMAGES,
    NODE,
    PERIOD_NS,
    STARTS_NS,
    after,
    assert_are_of,
    in_distribution_frames,
    novel_frames,
    poses_for,
    request,
    response_of,
    send,
    set_checkpoint,
    stamps_on,
    started,
    statuses,
    trigger,
    values_of,
)
from training.testing import write_random_checkpoint
from vmloc_ros.core.frame import IMAGE, Frame
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.messages import decode_pose, stamp_ns

pytestmark = pytest.mark.usefixtures("ros_domain")


@pytest.fixture(scope="module")
def localizer(confidence_checkpoint) -> Localizer:
    return localizer_of_the_node(confidence_checkpoint)


def test_on_demand_each_call_localizes_the_newest_frame_once(confidence_checkpoint, localizer, tmp_path):
    with started(confidence_checkpoint, tmp_path, continuous="false", input_timeout_s=1.0) as (us, _):
        frames = in_distribution_frames(5)
        send(us, frames)
        wait_until(lambda: values_of(us).get("received image") == "5", "their arrival")
        wait_until(lambda: statuses(us)[-1].message.startswith("waiting for a call of ~/localize"), "that diagnostic")
        assert not us.received[f"{NODE}/pose"]
        success, message = trigger(us, f"{NODE}/localize")
        assert success, message
        assert_are_of(poses_for(us, frames[-1:]), frames[-1:], localizer)
        assert trigger(us, f"{NODE}/localize") == (False, "no frame within 1 s; see /diagnostics for what is missing")
        (late,) = in_distribution_frames(1, after(frames))
        future = request(us, Trigger, f"{NODE}/localize")
        time.sleep(0.3)
        send(us, [late])
        assert response_of(future).success
        assert_are_of(poses_for(us, [late]), [late], localizer)
        assert stamps_on(us, f"{NODE}/pose") == [frames[-1].stamp_ns, late.stamp_ns]


def test_the_lifecycle_over_services_changes_the_checkpoint_without_a_restart(
    confidence_checkpoint, other_confidence_checkpoint, localizer, tmp_path
):
    parameters = {"checkpoint": "/nope", "device": "cpu", "autostart": "false", "queue_depth": 100}
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:

        def change(transition: int) -> bool:
            message = ChangeState.Request(transition=Transition(id=transition))
            return response_of(request(us, ChangeState, f"{NODE}/change_state", message)).success

        us.publisher(Image, IMAGES)
        us.collect(PoseStamped, f"{NODE}/pose")
        assert trigger(us, f"{NODE}/reset") == (False, "the node is unconfigured; activate it first")
        assert trigger(us, f"{NODE}/localize") == (False, "the node is unconfigured; activate it first")
        assert trigger(us, f"{NODE}/load_checkpoint") == (
            False,
            "the node is unconfigured; configure it, which loads parameter checkpoint",
        )
        assert not change(Transition.TRANSITION_CONFIGURE)
        for path in (confidence_checkpoint, other_confidence_checkpoint):
            set_checkpoint(us, path)
            assert change(Transition.TRANSITION_CONFIGURE)
            assert change(Transition.TRANSITION_ACTIVATE)
            us.wait_for_peers([IMAGES], [f"{NODE}/pose"])
            frames = in_distribution_frames(3)
            send(us, frames)
            assert_are_of(poses_for(us, frames), frames, localizer_of_the_node(path))
            assert change(Transition.TRANSITION_DEACTIVATE)
            wait_until(lambda: not us.publisher(Image, IMAGES).get_subscription_count(), "no subscriber")
            assert change(Transition.TRANSITION_CLEANUP)
        # An inactive node also changes to another checkpoint.
        assert change(Transition.TRANSITION_CONFIGURE)
        set_checkpoint(us, confidence_checkpoint)
        assert trigger(us, f"{NODE}/load_checkpoint") == (True, f"using {confidence_checkpoint}")
        assert change(Transition.TRANSITION_ACTIVATE)
        us.wait_for_peers([IMAGES], [f"{NODE}/pose"])
        frames = in_distribution_frames(3)
        send(us, frames)
        assert_are_of(poses_for(us, frames), frames, localizer)
        assert node.interrupt(signal.SIGTERM) == 0
        assert "Traceback" not in node.output


# --- services of a node shared by several tests: last, or it would localize the other tests' images -------------------


@pytest.fixture(scope="module")
def graph(ros_domain, confidence_checkpoint, tmp_path_factory):
    with started(confidence_checkpoint, tmp_path_factory.mktemp("graph")) as both:
        yield both


def test_localize_returns_the_next_frames_pose_or_why_there_is_none(graph, localizer):
    us, _ = graph
    (good,), sent = in_distribution_frames(1), []
    stamps_ns = count(next(STARTS_NS), PERIOD_NS)

    def localize(frame: Frame):
        """Call the service and send the frame until it responds: discovery may lose the first ones."""
        future = request(us, Trigger, f"{NODE}/localize")
        while not future.done():
            sent.append(replace(frame, stamp_ns=next(stamps_ns)))
            send(us, sent[-1:])
            time.sleep(0.1)
        return future.result()

    response = localize(good)
    x, y, z = localizer.localize(good).map_from_body.position_m
    assert response.success
    assert response.message.startswith(f"base_link in map: x {x:.3f} y {y:.3f} z {z:.3f} m, roll ")
    poses_for(us, sent)  # else one of them would be the next call's frame
    response = localize(novel_frames(1, after([good]))[0])
    assert not response.success
    assert response.message.startswith("lost: confidence ")


def test_images_are_localized_while_a_service_waits(graph):
    us, _ = graph
    frames = in_distribution_frames(3)
    waiting = [request(us, Trigger, f"{NODE}/localize") for _ in range(3)]
    time.sleep(0.5)
    send(us, frames)
    poses_for(us, frames)
    assert all(response_of(future).success for future in waiting)


def test_reset_starts_a_new_path_and_accepts_earlier_stamps(graph):
    us, _ = graph
    paths = us.collect(PathMessage, f"{NODE}/path")
    frames = in_distribution_frames(8)
    send(us, frames[2:])
    poses_for(us, frames[2:])
    # A late subscriber gets the whole path.
    wait_until(
        lambda: paths and [stamp_ns(p.header) for p in paths[-1].poses][-6:] == [f.stamp_ns for f in frames[2:]], ""
    )
    assert trigger(us, f"{NODE}/reset") == (True, "path, pairing and lost state cleared")
    send(us, frames[:2])  # too small a jump back to reset the pairing: without the call these would be late
    poses_for(us, frames[:2])
    wait_until(
        lambda: [stamp_ns(p.header) for p in paths[-1].poses] == [f.stamp_ns for f in frames[:2]], "a short path"
    )


@pytest.mark.parametrize(
    ("modalities", "names", "reason"),
    [
        (None, {}, r"checkpoint .*wrong\.safetensors does not exist"),
        ((IMAGE, "lidar"), {}, r"has other inputs: image, lidar, while the node runs with image; deactivate, clean up"),
        ((IMAGE,), {"map_frame": "cellar"}, r"has other map frames: cellar, while the node runs with map; "),
    ],
)
def test_a_checkpoint_that_cannot_take_over_leaves_the_old_one_in_use(
    modalities, names, reason, graph, confidence_checkpoint, localizer, tmp_path
):
    us, _ = graph
    wrong = tmp_path / "wrong.safetensors"
    if modalities:
        write_random_checkpoint(wrong, modalities, **names)
    set_checkpoint(us, wrong)
    success, message = trigger(us, f"{NODE}/load_checkpoint")
    assert not success
    assert re.search(reason + rf".*; still using {re.escape(str(confidence_checkpoint))}$", message), message
    frames = in_distribution_frames(3)
    send(us, frames)
    assert_are_of(poses_for(us, frames), frames, localizer)


def test_another_checkpoint_takes_over_without_losing_a_frame(
    graph, confidence_checkpoint, other_confidence_checkpoint
):
    us, _ = graph
    expected = {
        name: [localizer_of_the_node(path).localize(frame).map_from_body.matrix for frame in in_distribution_frames(10)]
        for name, path in (("old", confidence_checkpoint), ("new", other_confidence_checkpoint))
    }
    set_checkpoint(us, other_confidence_checkpoint)
    start_ns, sent = next(STARTS_NS), []

    def send_more(count: int) -> None:
        for _ in range(count):
            sent.append(replace(in_distribution_frames(10)[len(sent) % 10], stamp_ns=start_ns + len(sent) * PERIOD_NS))
            send(us, sent[-1:])

    send_more(5)
    poses_for(us, sent)
    future = request(us, Trigger, f"{NODE}/load_checkpoint")
    wait_until(lambda: send_more(1) or future.done(), "the new checkpoint")
    assert (future.result().success, future.result().message) == (True, f"using {other_confidence_checkpoint}")
    send_more(20)
    poses = poses_for(us, sent)
    assert [stamp_ns(message.header) for message in poses] == [frame.stamp_ns for frame in sent]
    names = [
        name
        for index, message in enumerate(poses)
        for name, matrices in expected.items()
        if np.allclose(decode_pose(message).matrix, matrices[index % 10], atol=1e-6)
    ]
    assert len(names) == len(sent)
    assert (names[0], names[-1]) == ("old", "new")
    assert names == sorted(names, reverse=True)  # "old" comes before "new": one change, no return
    wait_until(lambda: values_of(us)["checkpoint"] == str(other_confidence_checkpoint), "it in the diagnostics")
