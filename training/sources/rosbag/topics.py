# SPDX-License-Identifier: Apache-2.0
"""Choice of a bag's topics: those named in the options, or the only ones of a suitable type."""

from __future__ import annotations

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from training.sources.options import SourceOptions
from vmloc_ros.bags.files import types_of
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR

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
        "nav_msgs/msg/Odometry",
        "geometry_msgs/msg/TransformStamped",
        *_TRANSFORMS,
    ),
}
# Ground truth is usually a PoseStamped; odometry drifts; transforms need a chain of them: the first group found wins.
_POSE_GROUPS = (*((kind,) for kind in _TYPES["pose"] if kind not in _TRANSFORMS), _TRANSFORMS)
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


def is_transforms(reader: AnyReader, topic: str) -> bool:
    """Whether a topic carries transforms between many frames."""
    return _has(reader, topic, _TRANSFORMS)


def static_topics(reader: AnyReader, pose_topic: str) -> list[str]:
    """Topics of static transforms: the usual one, and in a namespace the one beside the chosen transforms."""
    names = {"/tf_static", f"{pose_topic}_static"}
    return sorted(name for name in names if name in reader.topics and is_transforms(reader, name))


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


def _topic(reader: AnyReader, role: str, wanted: str) -> str:
    path, types, kind = reader.paths[0], _TYPES[role], role.replace("_", " ")
    listing = ", ".join(f"{name} ({' and '.join(types_of(reader, name))})" for name in sorted(reader.topics))
    if wanted:
        if wanted not in reader.topics:
            raise DataError(f"{path} has no {kind} topic {wanted}; it has {listing}")
        if not _has(reader, wanted, types):
            raise DataError(
                f"{path}: the {kind} topic {wanted} is {' and '.join(types_of(reader, wanted))}, expected "
                f"{' or '.join(types)}"
            )
        return wanted
    for group in _POSE_GROUPS if role == "pose" else (types,):
        found = _candidates(reader, role, group)
        if len(found) == 1:
            return found[0]
        if found:
            option = f"source.{'cloud' if role == LIDAR else role}_topic"
            raise DataError(f"{path} has several {kind} topics ({', '.join(sorted(found))}); set {option}")
    raise DataError(f"{path} has no {kind} topic ({' or '.join(types)}); it has {listing}")


def _candidates(reader: AnyReader, role: str, types: tuple[str, ...]) -> list[str]:
    found = [name for name, info in reader.topics.items() if _has(reader, name, types) and info.msgcount]
    if role in (IMAGE, DEPTH):
        found = [name for name in found if ("depth" in name.lower()) == (role == DEPTH)]
    return [name for name in found if not (types is _TRANSFORMS and name.endswith("_static"))]
