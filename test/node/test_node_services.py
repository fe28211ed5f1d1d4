# SPDX-License-Identifier: Apache-2.0
"""Services, withholding when lost, signals, namespaces, looping bags: over real DDS, with the node in a process."""

from __future__ import annotations

import re
import signal
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import random_frame
from ros_graph import Peer, Process, localizer_of_the_node, node_arguments, peer, process_bundle, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from training.testing import write_random_checkpoint
from vmloc_ros.bags.files import BagWriter, image_message, typestore
from vmloc_ros.core.checkpoint import load_checkpoint, save_checkpoint
from vmloc_ros.core.confidence import (
    Confidence,
    NullDistribution,
    ReferenceFeatures,
    neg_log_p_value,
    stack_outlier_scores,
)
from vmloc_ros.core.frame import IMAGE, Frame
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.synchronizer import Bundle

pytestmark = pytest.mark.usefixtures("ros_domain")

NODE, IMAGES = "/vmloc_node", "/camera/image_raw"
MIN_CONFIDENCE = 0.01
PERIOD_NS = 100_000_000
STARTS_NS = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 60_000_000_000))


# --- checkpoints and frames -------------------------------------------------------------------------------------------


def write_confidence_checkpoint(path: Path, seed: int = 0) -> Path:
    """A random model of images whose confidence model was fitted to images of noise."""
    header = write_random_checkpoint(path, (IMAGE,), seed=seed)
    localizer = localizer_of_the_node(path)
    noise = [localizer.preprocess(replace(random_frame(i), cloud=None)) for i in range(80)]
    with torch.inference_mode():
        predictions = [localizer.model.locate(batch, header.pose_codec, 2) for batch in noise]
    features = np.concatenate([prediction.features[IMAGE].numpy() for prediction in predictions])
    positions = np.concatenate([prediction.positions_m for prediction in predictions])
    quaternions = np.concatenate([prediction.quaternions_wxyz for prediction in predictions])
    seen, held_out = slice(0, 40), slice(40, None)
    memory = ReferenceFeatures.fit(features[seen], features[seen], positions[seen], quaternions[seen], 20.0, rank=8)
    cues = stack_outlier_scores(
        {IMAGE: memory}, (IMAGE,), {IMAGE: features[held_out]}, positions[held_out], quaternions[held_out]
    )
    tails = tuple(NullDistribution.fit(cue) for cue in cues.T)
    confidence = Confidence({IMAGE: memory}, {(IMAGE,): (*tails, NullDistribution.fit(neg_log_p_value(cues, tails)))})
    save_checkpoint(path, header, load_checkpoint(path)[1].state_dict(), confidence)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_confidence_checkpoint(tmp_path_factory.mktemp("model") / "confidence.safetensors")


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory) -> Path:
    return write_confidence_checkpoint(tmp_path_factory.mktemp("model") / "other.safetensors", seed=1)


@pytest.fixture(scope="module")
def localizer(checkpoint) -> Localizer:
    return localizer_of_the_node(checkpoint)


def in_distribution_frames(count: int, start_ns: int | None = None) -> list[Frame]:
    start_ns = next(STARTS_NS) if start_ns is None else start_ns
    return [replace(random_frame(i), stamp_ns=start_ns + i * PERIOD_NS, cloud=None) for i in range(count)]


def novel_frames(count: int, start_ns: int) -> list[Frame]:
    """Images of stripes."""
    stripes = np.zeros((60, 80, 3), np.uint8)
    stripes[:, ::8] = 255
    return [replace(frame, image=stripes) for frame in in_distribution_frames(count, start_ns)]


def after(frames: Sequence[Frame]) -> int:
    return frames[-1].stamp_ns + PERIOD_NS


# --- the graph --------------------------------------------------------------------------------------------------------


def send(us: Peer, frames: Sequence[Frame], topic: str = IMAGES) -> None:
    for frame in frames:
        message = image_message(frame.stamp_ns, "camera", frame.image, "rgb8")
        us.publisher(Image, topic).publish(bytes(typestore().serialize_cdr(message, message.__msgtype__)))
        time.sleep(0.02)


def listen(us: Peer, node: Process, name: str = NODE, images: str = IMAGES) -> None:
    us.publisher(Image, images)
    us.collect(PoseStamped, f"{name}/pose")
    us.collect(PoseWithCovarianceStamped, f"{name}/pose_with_covariance")
    us.collect(TFMessage, "/tf")
    us.collect(DiagnosticArray, "/diagnostics")
    node.wait_for_output("now active")
    us.wait_for_peers([images], [f"{name}/pose", f"{name}/pose_with_covariance", "/tf", "/diagnostics"])


@contextmanager
def started(checkpoint: Path, folder: Path, **parameters) -> Iterator[tuple[Peer, Process]]:
    """A node that drops no frame, and a peer that collects its messages."""
    settings = {"checkpoint": checkpoint, "device": "cpu", "queue_depth": 100, "min_confidence": MIN_CONFIDENCE}
    with peer() as us, running(node_arguments(settings | parameters), folder / "node.log") as node:
        listen(us, node)
        yield us, node


def stamps_on(us: Peer, topic: str) -> list[int]:
    return [stamp_ns(message.header) for message in list(us.received[topic])]


def poses_for(us: Peer, frames: Sequence[Frame], topic: str = f"{NODE}/pose") -> list:
    """Poses of these frames in order of arrival, once all are there."""
    wanted = {frame.stamp_ns for frame in frames}
    wait_until(lambda: wanted <= set(stamps_on(us, topic)), f"{len(frames)} poses on {topic}")
    return [message for message in list(us.received[topic]) if stamp_ns(message.header) in wanted]


def assert_are_of(messages: Sequence, frames: Sequence[Frame], localizer: Localizer) -> None:
    for message, frame in zip(messages, frames, strict=True):
        expected = localizer.localize(frame).map_from_body
        assert stamp_ns(message.header) == frame.stamp_ns
        np.testing.assert_allclose(decode_pose(message).matrix, expected.matrix, atol=1e-6)


def request(us: Peer, service_type, name: str, message=None):
    """A future of the response."""
    client = us.node.create_client(service_type, name)
    assert client.wait_for_service(30.0), name
    return client.call_async(message or service_type.Request())


def response_of(future):
    wait_until(future.done, "the service's response")
    return future.result()


def trigger(us: Peer, name: str) -> tuple[bool, str]:
    response = response_of(request(us, Trigger, name))
    return response.success, response.message


def set_checkpoint(us: Peer, path: Path) -> None:
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(path))
    message = SetParameters.Request(parameters=[ParameterMessage(name="checkpoint", value=value)])
    assert response_of(request(us, SetParameters, f"{NODE}/set_parameters", message)).results[0].successful


def statuses(us: Peer) -> list[DiagnosticStatus]:
    return [message.status[0] for message in list(us.received["/diagnostics"])]


def values_of(us: Peer) -> dict[str, str]:
    return {pair.key: pair.value for status in statuses(us)[-1:] for pair in status.values}


# --- lost -------------------------------------------------------------------------------------------------------------


def test_nothing_is_published_while_lost_until_the_first_confident_pose(checkpoint, localizer, tmp_path):
    """A stream that begins with novel images, and later turns to them again."""
    first = novel_frames(6, next(STARTS_NS))
    good = in_distribution_frames(6, after(first))
    lost = novel_frames(25, after(good))
    again = in_distribution_frames(6, after(lost))
    confidences = [localizer.localize(frame).confidence for frame in (*first, *lost, *good, *again)]
    assert max(confidences[:31]) < MIN_CONFIDENCE < min(confidences[31:])  # else this would test nothing
    with started(checkpoint, tmp_path) as (us, node):
        send(us, first)
        wait_until(lambda: values_of(us).get("poses withheld") == "6", "their count")
        assert not us.received[f"{NODE}/pose"]
        send(us, good)
        assert_are_of(poses_for(us, good), good, localizer)
        send(us, lost)
        wait_until(lambda: values_of(us)["poses withheld"] == "31", "their count")
        pattern = rf"lost: confidence (\S+) below {MIN_CONFIDENCE:g} for (\d+\.\d) s"
        lost_statuses = [
            (status.level, match) for status in statuses(us) if (match := re.match(pattern, status.message))
        ]
        assert {level for level, _ in lost_statuses} == {DiagnosticStatus.WARN}
        assert float(lost_statuses[-1][1][1]) < MIN_CONFIDENCE
        send(us, again)
        poses_for(us, again)
        published = [frame.stamp_ns for frame in (*good, *again)]
        for topic in ("pose", "pose_with_covariance"):
            wait_until(lambda topic=topic: len(us.received[f"{NODE}/{topic}"]) >= len(published), topic)
            assert stamps_on(us, f"{NODE}/{topic}") == published
        assert [stamp_ns(t.header) for message in us.received["/tf"] for t in message.transforms] == published
        node.wait_for_output(r"WARN.*lost: confidence")
        node.wait_for_output(r"INFO.*no longer lost")
        wait_until(lambda: values_of(us)["poses published"] == str(len(published)), "their count")
        assert float(values_of(us)["confidence"]) == pytest.approx(confidences[-1], rel=0.01)


# --- on demand --------------------------------------------------------------------------------------------------------


def test_on_demand_each_call_localizes_the_newest_frame_once(checkpoint, localizer, tmp_path):
    with started(checkpoint, tmp_path, continuous="false", input_timeout_s=1.0) as (us, _):
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


# --- lifecycle --------------------------------------------------------------------------------------------------------


def test_the_lifecycle_over_services_changes_the_checkpoint_without_a_restart(
    checkpoint, other_checkpoint, localizer, tmp_path
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
        for path in (checkpoint, other_checkpoint):
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
        set_checkpoint(us, checkpoint)
        assert trigger(us, f"{NODE}/load_checkpoint") == (True, f"using {checkpoint}")
        assert change(Transition.TRANSITION_ACTIVATE)
        us.wait_for_peers([IMAGES], [f"{NODE}/pose"])
        frames = in_distribution_frames(3)
        send(us, frames)
        assert_are_of(poses_for(us, frames), frames, localizer)
        assert node.interrupt(signal.SIGTERM) == 0
        assert "Traceback" not in node.output


@pytest.fixture
def idle_node(ros_domain, checkpoint):
    """A node in this process that nothing spins."""
    import rclpy

    from vmloc_ros.node import VmlocNode

    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = VmlocNode(context=context)
    node.set_parameters([Parameter("checkpoint", value=str(checkpoint)), Parameter("device", value="cpu")])
    yield node
    node.close()
    node.destroy_node()
    rclpy.shutdown(context=context)


def process(node, frames: Sequence[Frame]) -> None:
    """Run frames through the node's worker."""
    for frame in frames:
        message = image_message(frame.stamp_ns, "camera", frame.image, "rgb8")
        process_bundle(node, Bundle(frame.stamp_ns, time.monotonic_ns(), {IMAGE: (frame.stamp_ns, message)}))


def test_a_checkpoint_without_confidence_model_publishes_every_pose_with_a_warning(idle_node, tmp_path, capfd):
    path = tmp_path / "plain.safetensors"
    write_random_checkpoint(path, (IMAGE,))
    idle_node.set_parameters([Parameter("checkpoint", value=str(path))])
    assert idle_node.start()
    assert re.search(r"WARN.*plain.safetensors has no confidence model", capfd.readouterr().err)
    process(idle_node, novel_frames(3, next(STARTS_NS)))
    level, _, values = idle_node._session.diagnose()
    assert level == DiagnosticStatus.OK
    assert (values["poses published"], values["poses withheld"]) == (3, 0)
    assert values["confidence"] == "none: the checkpoint has no confidence model"


def test_a_limit_on_the_covariance_withholds_poses_of_any_checkpoint(idle_node, tmp_path):
    path = tmp_path / "plain.safetensors"
    write_random_checkpoint(path, (IMAGE,))  # with residuals of 1 m along each axis
    idle_node.set_parameters([Parameter("checkpoint", value=str(path)), Parameter("max_position_std_m", value=0.9)])
    assert idle_node.start()
    process(idle_node, novel_frames(3, next(STARTS_NS)))
    level, message, values = idle_node._session.diagnose()
    assert level == DiagnosticStatus.WARN
    assert re.match(r"lost: position std \S+ m above 0.9 m for 0.2 s", message)
    assert (values["poses published"], values["poses withheld"]) == (0, 3)


def test_cleanup_frees_the_model(idle_node):
    assert idle_node.start()
    model = weakref.ref(idle_node._resources.localizer.model)
    assert model() is not None
    assert idle_node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert idle_node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    assert model() is None


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
    idle_node.set_parameters([Parameter("checkpoint", value=str(tmp_path / "bursting.safetensors"))])
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
        process(idle_node, frames)
        for topic in topics:
            wait_until(lambda topic=topic: len(us.received[topic]) >= len(good), topic)
        assert stamps_on(us, f"{NODE}/pose") == stamps_on(us, f"{NODE}/pose_with_covariance") == good
        assert len(us.received["/tf"]) == len(good)
        for message in us.received[f"{NODE}/pose_with_covariance"]:
            assert np.isfinite(decode_pose(message).matrix).all()
            assert np.isfinite(message.pose.covariance).all()
    values = idle_node._session.diagnose()[2]
    assert (values["poses published"], values["rejected: not localized"]) == (len(good), len(frames) - len(good))


def test_configure_fails_for_a_checkpoint_that_never_gives_a_finite_pose(idle_node, tmp_path):
    path = tmp_path / "nan.safetensors"
    header = write_random_checkpoint(path, (IMAGE,))
    weights = load_checkpoint(path)[1].state_dict()
    save_checkpoint(path, header, {k: x * torch.nan if x.is_floating_point() else x for k, x in weights.items()})
    idle_node.set_parameters([Parameter("checkpoint", value=str(path))])
    assert idle_node.trigger_configure() == TransitionCallbackReturn.FAILURE


# --- signals, namespaces, looping bags --------------------------------------------------------------------------------

SLOW_NODE = """
import sys
from vmloc_ros.runtime.served_model import ServedModel
from vmloc_ros.node import main

feed = ServedModel.feed

def feed_slowly(self, frame, batch):
    print("inference begins", flush=True)
    for _ in range(100):
        feed(self, frame, batch)
    print("inference ends", flush=True)
    return feed(self, frame, batch)

ServedModel.feed = feed_slowly
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_inference_ends_the_node_with_zero_and_leaves_no_process(number, checkpoint, tmp_path):
    arguments = ["-c", SLOW_NODE, *node_arguments({"checkpoint": checkpoint, "device": "cpu"})[2:]]
    with peer() as us, running(arguments, tmp_path / "log") as node:
        us.publisher(Image, IMAGES)
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES])
        send(us, in_distribution_frames(1))
        node.wait_for_output("inference begins")
        assert "inference ends" not in node.output
        assert node.interrupt(number) == 0
        assert "Traceback" not in node.output
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.is_file()]
    assert not [command for command in commands if f"checkpoint:={checkpoint}".encode() in command]


def test_two_namespaced_nodes_localize_their_own_cameras_which_start_late(checkpoint, other_checkpoint, tmp_path):
    paths = {"left": checkpoint, "right": other_checkpoint}

    def arguments(name: str) -> list[str]:
        parameters = {"checkpoint": paths[name], "device": "cpu", "queue_depth": 100, "base_frame": f"{name}/base_link"}
        parameters["base_from_body"] = "[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]"
        return [*node_arguments(parameters), "-r", f"__ns:=/{name}"]

    with (
        peer() as us,
        running(arguments("left"), tmp_path / "left.log") as left,
        running(arguments("right"), tmp_path / "right.log") as right,
    ):
        us.collect(TFMessage, "/tf")
        us.collect(DiagnosticArray, "/diagnostics")
        for node in (left, right):
            node.wait_for_output("now active")
        frames = {name: in_distribution_frames(4) for name in paths}
        for name in paths:
            us.publisher(Image, f"/{name}/camera/image_raw")
            us.collect(PoseStamped, f"/{name}/vmloc_node/pose")
            us.wait_for_peers([f"/{name}/camera/image_raw"], [f"/{name}/vmloc_node/pose", "/tf"])
            send(us, frames[name], f"/{name}/camera/image_raw")
        for name, path in paths.items():
            poses = poses_for(us, frames[name], f"/{name}/vmloc_node/pose")
            assert_are_of(poses, frames[name], localizer_of_the_node(path))
            assert len(us.received[f"/{name}/vmloc_node/pose"]) == 4
            assert trigger(us, f"/{name}/vmloc_node/reset")[0]
        wait_until(lambda: sum(len(message.transforms) for message in us.received["/tf"]) >= 8, "TF of both")
        children = [t.child_frame_id for message in us.received["/tf"] for t in message.transforms]
        assert sorted(children) == ["left/base_link"] * 4 + ["right/base_link"] * 4
        expected = {f"{name}/vmloc_node: localization" for name in paths}
        wait_until(lambda: {status.name for status in statuses(us)} == expected, "both diagnostics")


def test_a_bag_that_loops_with_its_clock_is_localized_in_each_round(checkpoint, localizer, tmp_path):
    frames = [replace(f, stamp_ns=f.stamp_ns + i * 4 * PERIOD_NS) for i, f in enumerate(in_distribution_frames(8))]
    first_ns, last_ns = frames[0].stamp_ns, frames[-1].stamp_ns
    with BagWriter(tmp_path / "bag") as writer:
        for frame in frames:
            writer.write(IMAGES, image_message(frame.stamp_ns, "camera", frame.image, "rgb8"), frame.stamp_ns)
    player = ["-m", "training.cli", "replay", str(tmp_path / "bag"), "--loop", "--clock", "--rate", "10"]
    with started(checkpoint, tmp_path, use_sim_time="true") as (us, node):
        paths = us.collect(PathMessage, f"{NODE}/path")
        us.wait_for_peers([], [f"{NODE}/path"])
        with running([*player, "--wait-for", IMAGES], tmp_path / "player.log") as process:
            wait_until(lambda: len(us.received[f"{NODE}/pose"]) >= 3 * len(frames), "three rounds", 60.0)
            wait_until(lambda: len(paths) > 1, "two paths", 60.0)
            assert process.interrupt(signal.SIGINT) == 0
        poses = us.received[f"{NODE}/pose"][: 3 * len(frames)]
        assert [stamp_ns(pose.header) for pose in poses] == 3 * [frame.stamp_ns for frame in frames]
        assert_are_of(poses, 3 * frames, localizer)
        wait_until(lambda: int(values_of(us)["pairing: resets"]) >= 2, "their count")
        stamps = [stamp_ns(message.header) for message in us.received["/diagnostics"]]
        assert any(first_ns <= stamp <= last_ns + 10**9 for stamp in stamps)  # by the bag's clock, not the wall's
        for path in paths:
            stamps = [stamp_ns(pose.header) for pose in path.poses]
            assert stamps == sorted(set(stamps))  # of one round
        assert node.interrupt(signal.SIGTERM) == 0


# --- services of a node shared by several tests: last, or it would localize the other tests' images -------------------


@pytest.fixture(scope="module")
def graph(ros_domain, checkpoint, tmp_path_factory):
    with started(checkpoint, tmp_path_factory.mktemp("graph")) as both:
        yield both


def test_localize_returns_the_next_frames_pose_or_why_there_is_none(graph, localizer):
    us, _ = graph
    (good,), sent = in_distribution_frames(1), []

    def localize(frame: Frame):
        """Call the service and send the frame until it responds: discovery may lose the first ones."""
        future = request(us, Trigger, f"{NODE}/localize")
        while not future.done():
            sent.append(replace(frame, stamp_ns=next(STARTS_NS)))
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
    modalities, names, reason, graph, checkpoint, localizer, tmp_path
):
    us, _ = graph
    wrong = tmp_path / "wrong.safetensors"
    if modalities:
        write_random_checkpoint(wrong, modalities, **names)
    set_checkpoint(us, wrong)
    success, message = trigger(us, f"{NODE}/load_checkpoint")
    assert not success
    assert re.search(reason + rf".*; still using {re.escape(str(checkpoint))}$", message), message
    frames = in_distribution_frames(3)
    send(us, frames)
    assert_are_of(poses_for(us, frames), frames, localizer)


def test_another_checkpoint_takes_over_without_losing_a_frame(graph, checkpoint, other_checkpoint):
    us, _ = graph
    expected = {
        name: [localizer_of_the_node(path).localize(frame).map_from_body.matrix for frame in in_distribution_frames(10)]
        for name, path in (("old", checkpoint), ("new", other_checkpoint))
    }
    set_checkpoint(us, other_checkpoint)
    start_ns, sent = next(STARTS_NS), []

    def send_more(count: int) -> None:
        for _ in range(count):
            sent.append(replace(in_distribution_frames(10)[len(sent) % 10], stamp_ns=start_ns + len(sent) * PERIOD_NS))
            send(us, sent[-1:])

    send_more(5)
    poses_for(us, sent)
    future = request(us, Trigger, f"{NODE}/load_checkpoint")
    wait_until(lambda: send_more(1) or future.done(), "the new checkpoint")
    assert (future.result().success, future.result().message) == (True, f"using {other_checkpoint}")
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
    wait_until(lambda: values_of(us)["checkpoint"] == str(other_checkpoint), "it in the diagnostics")
