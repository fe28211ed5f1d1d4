# SPDX-License-Identifier: Apache-2.0
"""Open recordings with every modality that all of them have; each bag is read through once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.sources.base import Source
from training.sources.factory import open_all, open_sources
from training.sources.options import SourceOptions
from training.sources.rosbag.source import is_bag
from training.sources.rosbag.topics import choose_streams
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import MODALITIES

_ABSENT = " has no "  # in the message about a bag without a topic of a type


def open_complete(
    paths: Sequence[Path], split: str, options: SourceOptions, wanted: tuple[str, ...] | None = None
) -> tuple[list[Source], tuple[str, ...], list[str]]:
    """Open the recordings and :func:`training.sources.factory.announce` them.

    Args:
        wanted: the modalities to read; None reads those that all recordings have.

    Returns:
        The sources, the modalities, and what is left out, with the reason.

    Raises:
        DataError: see :func:`training.sources.factory.open_sources`; topics are ambiguous; the recordings have no
            modality in common.
    """
    left_out: list[str] = []
    if wanted is None:
        found = {path: _modalities(path, split, options) for path in paths}
        wanted = tuple(name for name in MODALITIES if all(name in own for own in found.values()))
        for name in MODALITIES:
            having = [path.name for path, own in found.items() if name in own]
            if having and name not in wanted:
                left_out.append(f"{name}: only {', '.join(having)} of {len(paths)} paths have it")
        if not wanted:
            raise DataError(f"{', '.join(map(str, paths))} have neither images nor depth nor clouds in common")
    sources = open_all(paths, split, options, wanted)
    usable = tuple(name for name in wanted if all(name in source.modalities for source in sources))
    if lost := [name for name in wanted if name not in usable]:
        left_out.append(f"{', '.join(lost)}: not every recording has usable messages")
        if not usable:
            raise DataError(f"{', '.join(map(str, paths))} have no usable modality in common: {'; '.join(left_out)}")
    return sources, usable, left_out


def _modalities(path: Path, split: str, options: SourceOptions) -> tuple[str, ...]:
    """The modalities that can be read at a path; of bags their topics tell it."""
    bags = [path] if is_bag(path) else sorted(p for p in path.iterdir() if is_bag(p)) if path.is_dir() else []
    if bags:
        return tuple(name for name in MODALITIES if all(_has_topic(bag, name, options) for bag in bags))
    found, problems = [], []
    for name in MODALITIES:
        try:
            if any(name in source.modalities for source in open_sources(path, split, options, (name,))):
                found.append(name)
        except DataError as error:
            problems.append(error)
    if not found and problems:
        raise problems[0]
    return tuple(found)


def _has_topic(bag: Path, name: str, options: SourceOptions) -> bool:
    """Whether a bag has a topic of the modality. Raises DataError: it has several, of which the user must name one."""
    with open_bag(bag, options.allow_truncated) as reader:
        try:
            choose_streams(reader, options, (name,))
        except DataError as error:
            if f"{_ABSENT}{name} topic (" in str(error):
                return False
            raise
    return True
