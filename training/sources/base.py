# SPDX-License-Identifier: Apache-2.0
"""The interface of data sources."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol, runtime_checkable

from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose


class Source(Protocol):
    """Labelled frames in time order.

    Length, poses, stamps and mounts are cheap: they decode no image. Iterating streams, holding a few frames in memory.

    Attributes:
        name: for messages and records.
        map_frame: frame that the poses are given in.
        body_frame: frame whose poses they are.
        modalities: modalities that frames may have.
        mounts: ``body_from_sensor`` of each modality as far as it is known: of the camera's optical frame for image and
            depth, of the frame that clouds lie in for lidar.
        report: counts of frames dropped, by reason.
    """

    name: str
    map_frame: str
    body_frame: str
    modalities: tuple[str, ...]
    mounts: Mapping[str, Pose]
    report: dict[str, int]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...

    def poses(self) -> list[Pose]: ...

    def stamps_ns(self) -> list[int]: ...

    def fingerprint(self) -> str:
        """A text that changes whenever the frames may have changed; part of the cache's key."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A source that reads some of its frames without decoding the others."""

    def samples_at(self, stamps_ns: Collection[int]) -> Iterator[Sample]:
        """Those of its samples that have one of these stamps, in time order."""
        ...


def samples_at(source: Source, stamps_ns: Collection[int]) -> Iterator[Sample]:
    """Samples of a source that have one of these stamps, in time order; see :class:`Selective`."""
    if isinstance(source, Selective):
        return source.samples_at(stamps_ns)
    return (sample for sample in source if sample.frame.stamp_ns in stamps_ns)


def report_text(report: Mapping[str, int]) -> str:
    """The counts of :attr:`Source.report` that are not zero, such as ``90 frames, 10 images without depth``."""
    return ", ".join(f"{count} {what}" for what, count in report.items() if count)
