# SPDX-License-Identifier: Apache-2.0
"""Public datasets as rosbag2, so that they can be replayed into the node."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from training.sources.base import Source, report_text
from training.sources.kitti.source import KittiSource
from training.sources.options import SourceOptions
from training.sources.seven_scenes import SevenScenesSource
from training.sources.tum import TumSource
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.bags.messages import (
    camera_info_message,
    image_message,
    point_cloud_message,
    pose_stamped_message,
    tf_message,
)
from vmloc_ros.core.frame import IMAGE, LIDAR, Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.progress import with_progress

logger = logging.getLogger(__name__)

_CAMERA_FRAME, _LIDAR_FRAME = "camera_optical_frame", "lidar_link"
_FRAMES = {IMAGE: _CAMERA_FRAME, LIDAR: _LIDAR_FRAME}


def convert_seven_scenes(
    scene: Path,
    split: str,
    out: Path,
    *,
    options: SourceOptions | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write a split of a 7-Scenes scene as a bag, with the stamps and poses of :class:`SevenScenesSource`.

    There is no robot, hence no ``base_link`` and no ``/tf_static``: poses are of ``camera_optical_frame``.

    Args:
        scene: the scene's folder.
        split: ``train``, ``test`` or ``all``.
        out: the bag's folder; it appears when it is complete.
        overwrite: replace an existing bag.
        progress: show a progress bar.

    Raises:
        DataError: the scene is malformed, or the bag exists or cannot be written.
    """
    write_bag(SevenScenesSource(scene, split, options), out, overwrite=overwrite, progress=progress)


def convert_tum(
    sequence: Path,
    out: Path,
    *,
    options: SourceOptions | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write a sequence of TUM RGB-D as a bag: the frames of :class:`TumSource`, poses of ``camera_optical_frame``.

    Depth is rounded to millimetres, and gets the stamp of the colour image that it goes with.

    Raises:
        DataError: the sequence is malformed, or the bag exists or cannot be written.
    """
    write_bag(TumSource(sequence, options), out, overwrite=overwrite, progress=progress)


def convert_kitti(
    folder: Path,
    out: Path,
    *,
    options: SourceOptions | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write a KITTI odometry sequence or raw drive as a bag: frames of :class:`KittiSource`, poses of ``base_link``.

    Scans get the stamp of the image that they go with.

    Raises:
        DataError: the recording is malformed, or the bag exists or cannot be written.
    """
    source = KittiSource(folder, options)
    mounts = {_FRAMES[modality]: pose for modality, pose in source.mounts.items()}
    write_bag(source, out, mounts=mounts, overwrite=overwrite, progress=progress)


def write_bag(
    source: Source,
    out: Path,
    *,
    mounts: Mapping[str, Pose] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write all samples of a source as a bag; one is held in memory at a time.

    Topics, as far as the frames have them: ``/camera/image_raw`` (rgb8), ``/camera/depth/image_raw`` (16UC1,
    millimetres), ``/lidar/points`` in ``lidar_link``, ``/camera/camera_info``, ``/ground_truth/pose``: the pose of the
    source's body in its map, and ``/tf_static``. All of a frame has the frame's stamp.

    Args:
        source: depth is below 65.5 m.
        out: the bag's folder; it appears when it is complete.
        mounts: ``body_from_frame`` by the frame's name, for ``/tf_static``.
        overwrite: replace an existing bag.
        progress: show a progress bar.

    Raises:
        DataError: the source is malformed, or the bag exists or cannot be written.
    """
    logger.info("%s: %s", source.name, report_text(source.report))
    with BagWriter(out, overwrite=overwrite) as bag:
        if mounts:
            stamp_ns = source.stamps_ns()[0]
            transforms = [(source.body_frame, frame, pose, stamp_ns) for frame, pose in mounts.items()]
            bag.write("/tf_static", tf_message(transforms), stamp_ns)
        for sample in with_progress(source, len(source), "converting", "frames", disable=not progress):
            stamp_ns, pose = sample.frame.stamp_ns, sample.map_from_body
            bag.write("/ground_truth/pose", pose_stamped_message(stamp_ns, source.map_frame, pose), stamp_ns)
            _write_frame(bag, sample.frame)


def _write_frame(bag: BagWriter, frame: Frame) -> None:
    stamp_ns = frame.stamp_ns
    if frame.camera is not None:
        bag.write("/camera/camera_info", camera_info_message(stamp_ns, _CAMERA_FRAME, frame.camera), stamp_ns)
    if frame.image is not None:
        bag.write("/camera/image_raw", image_message(stamp_ns, _CAMERA_FRAME, frame.image, "rgb8"), stamp_ns)
    if frame.depth_m is not None:
        depth_mm = np.rint(frame.depth_m * np.float32(1000)).astype(np.uint16)
        bag.write("/camera/depth/image_raw", image_message(stamp_ns, _CAMERA_FRAME, depth_mm, "16UC1"), stamp_ns)
    if frame.cloud is not None:
        bag.write("/lidar/points", point_cloud_message(stamp_ns, _LIDAR_FRAME, frame.cloud), stamp_ns)
