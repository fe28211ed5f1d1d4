# SPDX-License-Identifier: Apache-2.0
"""A running node of images with a confidence model: checkpoints, frames, publishing, collecting, services."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from helpers import random_frame
from ros_graph import Peer, Process, cdr, localizer_of_the_node, node_arguments, peer, running, wait_until
from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import image_message
from vmloc_ros.core.checkpoint import load_checkpoint, save_checkpoint
from vmloc_ros.core.confidence import Confidence, NullDistribution, neg_log_p_value, stack_outlier_scores
from vmloc_ros.core.frame import IMAGE, Frame
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.reference_features import ReferenceFeatures

NODE, IMAGES = "/vmloc_node", "/camera/image_raw"
MIN_CONFIDENCE = 0.01
PERIOD_NS = 100_000_000
STARTS_NS = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 60_000_000_000))


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
    scores = stack_outlier_scores(
        {IMAGE: memory}, (IMAGE,), {IMAGE: features[held_out]}, positions[held_out], quaternions[held_out]
    )
    tails = tuple(NullDistribution.fit(score) for score in scores.T)
    confidence = Confidence({IMAGE: memory}, {(IMAGE,): (*tails, NullDistribution.fit(neg_log_p_value(scores, tails)))})
    save_checkpoint(path, header, load_checkpoint(path)[1].state_dict(), confidence)
    return path


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


def send(us: Peer, frames: Sequence[Frame], topic: str = IMAGES) -> None:
    for frame in frames:
        message = image_message(frame.stamp_ns, "camera", frame.image, "rgb8")
        us.publisher(Image, topic).publish(cdr(message))
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
