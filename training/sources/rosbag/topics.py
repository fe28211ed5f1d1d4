# SPDX-License-Identifier: Apache-2.0
"""Choice of a bag's topics: those named in the options, or the only ones of a suitable type."""

from __future__ import annotations

from collections.abc import Mapping

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from training.sources.options import SourceOptions
from training.sources.rosbag.headers import read_header
from vmloc_ros.bags.files import types_of
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.core.names import find_topic, frame_name

ODOMETRY = "nav_msgs/msg/Odometry"
_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_CAMERA_INFO = ("sensor_msgs/msg/CameraInfo",)
# The second is what ROS 1 had before tf2.
_TRANSFORMS = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
_TYPES = {
    IMAGE: _IMAGES,
    DEPTH: _IMAGES,
    LIDAR: ("sensor_msgs/msg/PointCloud2",),
    "camera_info": _CAMERA_INFO,
    "pose": (
        "geometry_msgs/msg/PoseStamped",
        "geometry_msgs/msg/PoseWithCovarianceStamped",
        ODOMETRY,
        "geometry_msgs/msg/TransformStamped",
        *_TRANSFORMS,
    ),
}
# Ground truth is usually a PoseStamped; odometry drifts; transforms need a chain of them: the first group found wins.
_POSE_GROUPS = (*((kind,) for kind in _TYPES["pose"] if kind not in _TRANSFORMS), _TRANSFORMS)
_SENSORS = (*_IMAGES, "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/LaserScan")
# Types that are read alike, where one topic has messages of several.
_FAMILIES = (_IMAGES, _TYPES[LIDAR], _CAMERA_INFO, *_POSE_GROUPS)


def choose_streams(reader: AnyReader, options: SourceOptions, modalities: tuple[str, ...]) -> dict[str, str]:
    """Topics by modality.

    Raises:
        DataError: a topic is absent, ambiguous or of the wrong type.
    """
    wanted = {IMAGE: options.image_topic, DEPTH: options.depth_topic, LIDAR: options.cloud_topic}
    return {name: _topic(reader, name, wanted[name]) for name in modalities}


def choose_pose_topic(reader: AnyReader, options: SourceOptions) -> str:
    """The topic of the true poses; errors as of :func:`choose_streams`."""
    return _topic(reader, "pose", options.pose_topic)


def choose_camera_topic(reader: AnyReader, options: SourceOptions, image_topic: str) -> str | None:
    """The topic of the image's intrinsics, None where the bag has none; errors as of :func:`choose_streams`."""
    topics = [name for name in reader.topics if _has(reader, name, _CAMERA_INFO)]
    if not (topics or options.camera_info_topic):
        return None
    # By ROS convention the intrinsics of /camera/image_raw are on /camera/camera_info.
    beside_image = f"{image_topic.rpartition('/')[0]}/camera_info"
    return _topic(reader, "camera_info", options.camera_info_topic or (beside_image if beside_image in topics else ""))


def other_pose_topics(reader: AnyReader, chosen: str) -> list[str]:
    """The topics that could give poses too."""
    known = {chosen, *static_topics(reader, chosen)}
    found = [name for name in reader.topics if _has(reader, name, _TYPES["pose"]) and name not in known]
    return sorted(name for name in found if reader.topics[name].msgcount)


def is_transforms(reader: AnyReader, topic: str) -> bool:
    """Whether a topic carries transforms between many frames."""
    return _has(reader, topic, _TRANSFORMS)


def is_odometry(reader: AnyReader, topic: str) -> bool:
    """Whether a topic carries nav_msgs/Odometry."""
    return _has(reader, topic, (ODOMETRY,))


def static_topics(reader: AnyReader, pose_topic: str) -> list[str]:
    """Topics of static transforms: the usual one, and in a namespace the one beside the chosen transforms."""
    names = {find_topic(reader.topics, "/tf_static"), f"{pose_topic}_static"}
    return sorted(name for name in names if name in reader.topics and is_transforms(reader, name))


def moving_topics(reader: AnyReader, static: list[str]) -> list[str]:
    """Topics of transforms that are not static."""
    return sorted(name for name in reader.topics if name not in static and is_transforms(reader, name))


def connections_of(reader: AnyReader, topics: list[str]) -> list[Connection]:
    """Connections of topics; a topic has one for each of its publishers.

    Where a topic has messages of several types, those that are read alike are taken: raw and compressed pictures.
    """
    families = {topic: _family(reader, topic) for topic in topics}
    return [connection for connection in reader.connections if connection.msgtype in families.get(connection.topic, ())]


def strays(reader: AnyReader, topics: list[str]) -> list[str]:
    """What :func:`connections_of` leaves out, for warnings."""
    found = []
    for topic in topics:
        family, types = _family(reader, topic), types_of(reader, topic)
        if others := ", ".join(f"{count} of {kind}" for kind, count in types.items() if kind not in family):
            used = " and ".join(kind for kind in types if kind in family)
            found.append(f"{topic} has messages of several types; used are those of {used}, left out are {others}")
    return found


def _family(reader: AnyReader, topic: str) -> tuple[str, ...]:
    """The types by which a topic is read: those that have most of its messages."""
    types = types_of(reader, topic)
    count, family = max(
        ((sum(types.get(kind, 0) for kind in family), family) for family in _FAMILIES), key=lambda found: found[0]
    )
    return family if count else tuple(types)


def _has(reader: AnyReader, topic: str, types: tuple[str, ...]) -> bool:
    return any(kind in types for kind in _family(reader, topic))


def sensor_frames(reader: AnyReader) -> dict[str, str]:
    """``header.frame_id`` of the first message of every picture, cloud and laser scan topic of the bag."""
    topics = [name for name, info in reader.topics.items() if info.msgcount and _has(reader, name, _SENSORS)]
    return {topic: frame for topic in topics if (frame := _first_frame(reader, topic)) is not None}


def describe_topic(reader: AnyReader, topic: str, *more: str) -> str:
    """A topic with types, number and mean rate over the recording of its messages, and more facts, as text."""
    count, seconds = reader.topics[topic].msgcount, reader.duration * 1e-9
    rate = f"{count / seconds:.3g} per second" if count > 1 and seconds > 1 else ""
    return f"{topic} ({', '.join([*types_of(reader, topic), str(count), *filter(None, (rate, *more))])})"


def describe_streams(
    reader: AnyReader, options: SourceOptions, streams: Mapping[str, str], frames: Mapping[str, str]
) -> str:
    """The topics that are read, and the image's intrinsics, as text."""
    names = {name: frame_name(frames.get(name, "")) for name in streams}
    texts = [f"{name} {describe_topic(reader, topic, names[name])}" for name, topic in streams.items()]
    if IMAGE in streams:
        try:
            camera = choose_camera_topic(reader, options, streams[IMAGE])
        except DataError:
            camera = None  # named when frames are read, which needs it
        texts += [f"camera info {describe_topic(reader, camera)}"] if camera else ["no camera info"]
    return ", ".join(texts)


def _topic(reader: AnyReader, role: str, wanted: str) -> str:
    path, types, kind = reader.paths[0], _TYPES[role], role.replace("_", " ")
    option = f"source.{'cloud' if role == LIDAR else role}_topic"
    if wanted:
        name = find_topic(reader.topics, wanted)
        if name is None:
            raise DataError(f"{path} has no {kind} topic {wanted}; it has {_listing(reader)}")
        if not _has(reader, name, types):
            found = ", ".join(types_of(reader, name))
            raise DataError(f"{path}: the {kind} topic {wanted} is {found}, expected {' or '.join(types)}")
        return name
    for group in _POSE_GROUPS if role == "pose" else (types,):
        candidates = _candidates(reader, role, group)
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            facts = [describe_topic(reader, name, _frame_fact(reader, name)) for name in sorted(candidates)]
            choice = f"--set {option}={sorted(candidates)[0]}"
            raise DataError(f"{path} has several {kind} topics: {', '.join(facts)}; set {option}, such as {choice}")
    raise DataError(f"{path} has no {kind} topic ({' or '.join(types)}); it has {_listing(reader)}")


def _candidates(reader: AnyReader, role: str, types: tuple[str, ...]) -> list[str]:
    found = [name for name, info in reader.topics.items() if info.msgcount and _has(reader, name, types)]
    if role in (IMAGE, DEPTH):
        found = [name for name in found if ("depth" in name.lower()) == (role == DEPTH)]
    return [name for name in found if not (types is _TRANSFORMS and name.endswith("_static"))]


def _listing(reader: AnyReader) -> str:
    return ", ".join(f"{name} ({', '.join(types_of(reader, name))})" for name in sorted(reader.topics))


def _first_frame(reader: AnyReader, topic: str) -> str | None:
    """``header.frame_id`` of a topic's first message; None where it cannot be read."""
    for _, _, data in reader.messages(connections_of(reader, [topic])):
        try:
            return frame_name(read_header(data, reader.is2)[1])
        except ValueError:
            return None
    return None


def _frame_fact(reader: AnyReader, topic: str) -> str:
    frame = None if is_transforms(reader, topic) else _first_frame(reader, topic)
    return f"frame {frame}" if frame else ""
