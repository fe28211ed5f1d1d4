# SPDX-License-Identifier: Apache-2.0
"""Data sources: one file per dataset behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from training.sources.options import SourceOptions
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose


class Source(Protocol):
    """Labelled frames in time order.

    Length, poses and stamps are cheap: they decode no image. Iterating streams, holding a few frames in memory.

    Attributes:
        name: for messages and records.
        map_frame: frame of the poses.
        body_frame: the frame whose poses these are.
        modalities: what frames may have.
        report: counts of frames dropped, by reason.
    """

    name: str
    map_frame: str
    body_frame: str
    modalities: tuple[str, ...]
    report: dict[str, int]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...

    def poses(self) -> list[Pose]: ...

    def stamps_ns(self) -> list[int]: ...


def open_sources(path: Path, split: str, options: SourceOptions, modalities: tuple[str, ...]) -> list[Source]:
    """Sources at ``path``: a 7-Scenes scene, a bag, or a folder of bags.

    Args:
        split: ``train``, ``test`` or ``all``; bags have no split of their own and ignore it.
        modalities: what the model wants; a bag source subscribes to nothing else.

    Raises:
        DataError: the path is missing, of no known kind, or malformed.
    """
    from training.sources.rosbag import RosbagSource, is_bag
    from training.sources.seven_scenes import SevenScenesSource

    if not path.exists():
        raise DataError(f"{path} does not exist; give a bag, a folder of bags or a 7-Scenes scene")
    if is_bag(path):
        return [RosbagSource(path, options, modalities)]
    if path.is_dir() and ((path / "TrainSplit.txt").exists() or any(path.glob("seq-*"))):
        return [SevenScenesSource(path, split, stride=options.stride, skip_invalid=options.skip_invalid)]
    bags = sorted(child for child in path.iterdir() if is_bag(child)) if path.is_dir() else []
    if not bags:
        raise DataError(
            f"{path} is neither a bag (metadata.yaml, .mcap, .db3, .bag), nor a folder of bags, nor a 7-Scenes scene "
            "(TrainSplit.txt, seq-*)"
        )
    return [RosbagSource(bag, options, modalities) for bag in bags]
