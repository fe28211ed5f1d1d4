# SPDX-License-Identifier: Apache-2.0
"""Open data sources by path."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from training.sources.base import Source, report_text
from training.sources.caching import default_cache
from training.sources.options import SourceOptions
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import MODALITIES

logger = logging.getLogger(__name__)

_NO_KNOWN_KIND = (
    "neither a bag (metadata.yaml, .mcap, .db3, .bag), nor a folder of bags, nor a 7-Scenes scene (TrainSplit.txt, "
    "seq-*), nor a TUM RGB-D sequence (rgb.txt, groundtruth.txt), nor a KITTI odometry sequence (calib.txt, times.txt) "
    "or raw drive (oxts), nor RobotCar (stereo.timestamps)"
)


def open_sources(path: Path, split: str, options: SourceOptions, modalities: tuple[str, ...]) -> list[Source]:
    """Sources at ``path``: a 7-Scenes scene, a TUM RGB-D, KITTI or RobotCar recording, a bag, or a folder of bags.

    Args:
        split: ``train``, ``test`` or ``all``; applies to 7-Scenes, folders of RobotCar sequences, and bags where the
            options split them.
        modalities: modalities to read; 7-Scenes always reads images and depth.

    Raises:
        DataError: the path is missing, of no known kind, or malformed.
    """
    from training.sources.kitti.source import KittiSource, is_kitti
    from training.sources.robotcar.source import RobotCarSource, is_folder_of_sequences, is_sequence, select_sequences
    from training.sources.rosbag.source import is_bag
    from training.sources.seven_scenes import SevenScenesSource, is_scene
    from training.sources.tum import TumSource, is_tum

    if not path.exists():
        raise DataError(
            f"{path} does not exist; give a bag, a folder of bags or a 7-Scenes scene, TUM, KITTI or RobotCar recording"
        )
    if is_bag(path):
        return _open_bags(path, [path], split, options, modalities)
    if is_scene(path):
        return [SevenScenesSource(path, split, options)]
    if is_tum(path):
        return [TumSource(path, options, modalities)]
    if is_kitti(path):
        return [KittiSource(path, options, modalities)]
    if is_sequence(path):
        return [RobotCarSource(path, options, modalities)]
    if is_folder_of_sequences(path):
        robotcar = options.robotcar
        found = select_sequences(path, split, robotcar.scene, robotcar.allow_missing)
        return [RobotCarSource(sequence, options, modalities) for sequence in found]
    bags = sorted(child for child in path.iterdir() if is_bag(child)) if path.is_dir() else []
    if not bags:
        raise DataError(f"{path} is {_NO_KNOWN_KIND}")
    return _open_bags(path, bags, split, options, modalities)


def open_with_every_modality(path: Path, split: str, options: SourceOptions) -> tuple[list[Source], list[DataError]]:
    """Sources at ``path`` with every modality that can be read there, and why others cannot.

    Raises:
        DataError: none can be read; see :func:`open_sources`.
    """
    problems: list[DataError] = []

    def can_be_read(name: str) -> bool:
        try:
            return any(name in source.modalities for source in open_sources(path, split, options, (name,)))
        except DataError as error:
            problems.append(error)
            return False

    found = tuple(name for name in MODALITIES if can_be_read(name))
    if not found:
        raise problems[0] if problems else DataError(f"{path} holds neither images nor depth nor clouds")
    return open_sources(path, split, options, found), problems


def _open_bags(
    path: Path, bags: list[Path], split: str, options: SourceOptions, modalities: tuple[str, ...]
) -> list[Source]:
    """Open the bags and keep those with frames in the split; a bag may be too short to have a test part."""
    from training.sources.rosbag.source import RosbagSource

    sources = [RosbagSource(bag, options, modalities, split, default_cache() / "index") for bag in bags]
    kept: list[Source] = [source for source in sources if len(source)]
    if not kept:
        raise DataError(f"{path}: no frame is in the {split} split; see source.test_from_s and source.test_every")
    share_image_bits(kept)
    return kept


def open_all(paths: Sequence[Path], split: str, options: SourceOptions, modalities: tuple[str, ...]) -> list[Source]:
    """Open the sources at several paths as :func:`open_sources` does, and :func:`announce` them."""
    sources = [source for path in paths for source in open_sources(path, split, options, modalities)]
    share_image_bits(sources)
    announce(sources)
    return sources


def share_image_bits(sources: Sequence[Source]) -> None:
    """Read the 16-bit pictures of all bags by one range, the widest: a drive in the dark does not show it."""
    from training.sources.rosbag.pictures import BITS
    from training.sources.rosbag.source import RosbagSource

    bags = [source for source in sources if isinstance(source, RosbagSource) and BITS in source.readings]
    widest = max((bag.readings[BITS] for bag in bags), default=0)
    for bag in bags:
        bag.share_image_bits(widest)


def announce(sources: Sequence[Source]) -> None:
    """Log what each source reads (topics, frames), what it assumes, and its frames and dropped frames."""
    for source in sources:
        for text in getattr(source, "choices", ()):
            logger.info("%s: %s", source.name, text)
        logger.info("%s: %s", source.name, report_text(source.report) or f"{len(source)} frames")
    # Ten bags of one robot raise one doubt.
    doubts: dict[str, list[str]] = {}
    for source in sources:
        for text in getattr(source, "doubts", ()):
            doubts.setdefault(text, []).append(source.name)
    for text, names in doubts.items():
        logger.warning("%s: %s", ", ".join(names), text)
