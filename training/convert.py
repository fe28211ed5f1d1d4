# SPDX-License-Identifier: Apache-2.0
"""Public datasets as rosbag2, so that they can be replayed into the node."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from training.sources.seven_scenes import SevenScenesSource, camera_of
from vmloc_ros.core.bags import BagWriter, camera_info_message, image_message, pose_stamped_message


def convert_seven_scenes(
    scene: Path,
    split: str,
    out: Path,
    *,
    stride: int = 1,
    rate_hz: float = 30.0,
    overwrite: bool = False,
    skip_invalid: bool = False,
    progress: bool = True,
) -> None:
    """Write a split of a 7-Scenes scene as a bag, with the stamps and poses of :class:`SevenScenesSource`.

    Topics: ``/camera/image_raw`` (rgb8), ``/camera/depth/image_raw`` (16UC1, millimetres as in the files,
    65535 replaced by 0), ``/camera/camera_info``, and ``/ground_truth/pose``: the pose of
    ``camera_optical_frame`` in ``map``. There is no robot, hence no ``base_link`` and no ``/tf_static``.

    Args:
        scene: the scene's folder.
        split: ``train``, ``test`` or ``all``.
        out: the bag's folder; it appears when it is complete.
        stride: use every ``stride``-th frame of each sequence.
        rate_hz: of the camera.
        overwrite: replace an existing bag.
        skip_invalid: leave out frames without a valid pose instead of stopping.
        progress: show a progress bar.

    Raises:
        DataError: the scene is malformed, or the bag exists or cannot be written.
    """
    source = SevenScenesSource(scene, split, stride=stride, skip_invalid=skip_invalid, rate_hz=rate_hz)
    labels = list(zip(source.stamps_ns(), source.poses(), strict=True))
    with BagWriter(out, overwrite=overwrite) as bag:
        for index, (stamp_ns, pose) in enumerate(tqdm(labels, desc="converting", unit="frame", disable=not progress)):
            image, depth_mm = source.read(index)
            camera_info = camera_info_message(stamp_ns, source.body_frame, camera_of(image))
            color = image_message(stamp_ns, source.body_frame, image, "rgb8")
            depth = image_message(stamp_ns, source.body_frame, depth_mm, "16UC1")
            bag.write("/ground_truth/pose", pose_stamped_message(stamp_ns, source.map_frame, pose), stamp_ns)
            bag.write("/camera/camera_info", camera_info, stamp_ns)
            bag.write("/camera/image_raw", color, stamp_ns)
            bag.write("/camera/depth/image_raw", depth, stamp_ns)
