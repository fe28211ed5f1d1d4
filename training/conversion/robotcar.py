# SPDX-License-Identifier: Apache-2.0
"""A RobotCar sequence as rosbag2, with the vehicle's transforms and odometry, so that it replays like a robot."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.sources.base import report_text
from training.sources.options import SourceOptions
from training.sources.robotcar.calibration import (
    BASE_FRAME,
    CAMERAS,
    CENTRE_MODEL,
    SENSORS,
    VEHICLE_FRAME,
    base_from_vehicle,
    find_folder,
    read_camera_model,
    stereo_from_base,
    vehicle_from_sensor,
)
from training.sources.robotcar.files import UTM_ORIGIN_M, StampedPoses, integrate_vo, read_vo
from training.sources.robotcar.source import RobotCarSource
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.bags.messages import (
    camera_info_message,
    image_message,
    odometry_message,
    point_cloud_message,
    pose_stamped_message,
    tf_message,
    typestore,
)
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import IMAGE, LIDAR
from vmloc_ros.core.geometry import Pose, rotation_vector_from_quaternion
from vmloc_ros.core.progress import with_progress

logger = logging.getLogger(__name__)

_CAMERA_FRAME, _ODOM_FRAME, _UTM_FRAME = "camera_optical_frame", "odom", "utm"
_Record = tuple[int, str, Any]  # stamp, topic, message


def convert_robotcar(
    sequence: Path,
    out: Path,
    *,
    options: SourceOptions | None = None,
    modalities: Sequence[str] = (IMAGE, LIDAR),
    compressed: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write the frames of :class:`RobotCarSource` as a bag, in the order of time.

    Topics: ``/camera/image_raw`` (rgb8; or ``/camera/image_raw/compressed``, JPEG) and, of undistorted images,
    ``/camera/camera_info``; ``/lidar/points`` in ``vehicle``, one accumulated cloud per image with its stamp, since one
    scan of the LMS is a line that shows no place; ``/ground_truth/pose`` of ``base_link`` in ``map`` at every image;
    ``/odom``, the integrated visual odometry, where the sequence has it; ``/tf_static``: ``utm`` to ``map``, and from
    ``base_link`` to every sensor that has extrinsics.

    Args:
        out: the bag's folder; it appears when it is complete.
        modalities: ``image``, or ``image`` and ``lidar``.
        compressed: images as JPEG of quality 95: several times smaller, not equal to the files' to the bit.
        overwrite: replace an existing bag.
        progress: show a progress bar.

    Raises:
        DataError: the sequence is malformed, or the bag exists or cannot be written.
    """
    options = options or SourceOptions()
    source = RobotCarSource(sequence, options, modalities)
    extrinsics = find_folder(sequence, "extrinsics", options.robotcar.extrinsics)
    models = find_folder(sequence, "models", options.robotcar.models)
    logger.info("%s: %s", source.name, report_text(source.report))
    odometry = _odometry(sequence, extrinsics)
    start_ns = min([source.stamps_ns()[0], *([] if odometry is None else odometry.stamps_ns[:1].tolist())])
    with BagWriter(out, overwrite=overwrite) as bag:
        bag.write("/tf_static", tf_message(_static_transforms(extrinsics, models, start_ns)), start_ns)
        frames = _frame_records(source, compressed, progress)
        for stamp_ns, topic, message in heapq.merge(frames, _odometry_records(odometry), key=lambda record: record[0]):
            bag.write(topic, message, stamp_ns)


def _odometry(sequence: Path, extrinsics: Path) -> StampedPoses | None:
    path = sequence / "vo" / "vo.csv"
    if not path.is_file():
        logger.warning("%s is missing; the bag gets no odometry", path)
        return None
    return integrate_vo(read_vo(path), stereo_from_base(extrinsics))


def _static_transforms(extrinsics: Path, models: Path, stamp_ns: int) -> list[tuple[str, str, Pose, int]]:
    """``utm`` to ``map``, and the vehicle's frames, those of the cameras also as optical frames."""
    mounts = {
        sensor: vehicle_from_sensor(extrinsics, sensor)
        for sensor in SENSORS
        if sensor in ("ins", "stereo") or (extrinsics / f"{sensor}.txt").is_file()
    }
    for camera in CAMERAS:
        model, frame = (CENTRE_MODEL, _CAMERA_FRAME) if camera == "stereo" else (camera, f"{camera}_optical_frame")
        if camera in mounts and (camera == "stereo" or (models / f"{model}.txt").is_file()):
            mounts[frame] = mounts[camera] @ read_camera_model(models, model).camera_from_optical
    return [
        (_UTM_FRAME, "map", Pose(UTM_ORIGIN_M, Pose.identity().quaternion_wxyz), stamp_ns),
        (BASE_FRAME, VEHICLE_FRAME, base_from_vehicle(extrinsics), stamp_ns),
        *((VEHICLE_FRAME, frame, pose, stamp_ns) for frame, pose in mounts.items()),
    ]


def _frame_records(source: RobotCarSource, compressed: bool, progress: bool) -> Iterator[_Record]:
    for sample in with_progress(source, len(source), "converting", "frames", disable=not progress):
        frame, stamp_ns = sample.frame, sample.frame.stamp_ns
        yield stamp_ns, "/ground_truth/pose", pose_stamped_message(stamp_ns, source.map_frame, sample.map_from_body)
        if frame.camera is not None:
            yield stamp_ns, "/camera/camera_info", camera_info_message(stamp_ns, _CAMERA_FRAME, frame.camera)
        if frame.image is not None and compressed:
            yield stamp_ns, "/camera/image_raw/compressed", _jpeg_message(stamp_ns, frame.image)
        elif frame.image is not None:
            yield stamp_ns, "/camera/image_raw", image_message(stamp_ns, _CAMERA_FRAME, frame.image, "rgb8")
        if frame.cloud is not None:
            yield stamp_ns, "/lidar/points", point_cloud_message(stamp_ns, VEHICLE_FRAME, frame.cloud)


def _odometry_records(track: StampedPoses | None) -> Iterator[_Record]:
    """Odometry at the end of every motion, with the motion's mean velocity."""
    if track is None:
        return
    stamps: list[int] = track.stamps_ns.tolist()
    for before_ns, stamp_ns, before, pose in zip(stamps, stamps[1:], track.poses, track.poses[1:], strict=False):
        motion, elapsed_s = before.inverse() @ pose, (stamp_ns - before_ns) / 1e9
        linear = motion.position_m / elapsed_s
        angular = rotation_vector_from_quaternion(motion.quaternion_wxyz) / elapsed_s
        yield stamp_ns, "/odom", odometry_message(stamp_ns, _ODOM_FRAME, BASE_FRAME, pose, linear, angular)


def _jpeg_message(stamp_ns: int, image: NDArray[np.uint8]) -> Any:
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not encoded:
        raise DataError(f"the image at {stamp_ns} ns, {image.shape[1]} x {image.shape[0]} pixels, cannot become a JPEG")
    types = typestore().types
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    stamp = types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
    header = types["std_msgs/msg/Header"](stamp=stamp, frame_id=_CAMERA_FRAME)
    # As compressed_image_transport describes an rgb8 original: the file itself is in the usual order.
    return types["sensor_msgs/msg/CompressedImage"](header=header, format="rgb8; jpeg compressed bgr8", data=data)
