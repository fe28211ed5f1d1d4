# SPDX-License-Identifier: Apache-2.0
"""Survey recordings: poses of all frames, and a sample of what the sensors measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.sources.base import Source, report_text, samples_at
from training.sources.options import SourceOptions
from training.survey.facts import CameraFacts, DepthFacts, Recording, Survey
from training.survey.lidar_model import measure_lidar
from training.survey.opening import open_complete
from training.survey.path import path_facts
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Sample

_FRAMES = 40  # that are decoded
_RECORDINGS = 8  # from which they are taken: raw messages are read up to the last of them
_KEPT = 16  # that the survey hands on
_DARK = 0.12
_KINDS = {
    "RosbagSource": "bag",
    "SevenScenesSource": "seven_scenes",
    "TumSource": "tum",
    "KittiSource": "kitti",
    "RobotCarSource": "robotcar",
}


def survey(
    paths: Sequence[Path],
    split: str = "train",
    options: SourceOptions | None = None,
    modalities: tuple[str, ...] | None = None,
) -> Survey:
    """Measure what the recordings at these paths hold.

    Beyond their indices, 40 frames are decoded.

    Args:
        split: see :func:`training.sources.factory.open_sources`.
        modalities: to read; None reads those that all recordings have.

    Raises:
        DataError: a recording is missing or malformed, its topics are ambiguous, or it has no frame with a pose.
    """
    sources, found, left_out = open_complete(paths, split, options or SourceOptions(), modalities)
    poses, stamps = [source.poses() for source in sources], [source.stamps_ns() for source in sources]
    samples, read_s = _sample(sources)
    if not samples:
        raise DataError(f"{', '.join(map(str, paths))}: no frame can be decoded")
    frames = [sample.frame for sample in samples]
    clouds = [frame.cloud for frame in frames if frame.cloud is not None]
    found = tuple(name for name in found if any(name in frame.modalities for frame in frames))
    mounted = tuple(name for name in found if all(name in source.mounts for source in sources))
    return Survey(
        recordings=tuple(map(_recording, sources)),
        map_frame=sources[0].map_frame,
        body_frame=sources[0].body_frame,
        modalities=found,
        left_out=tuple(left_out),
        mounted=mounted,
        camera=_camera_facts(samples),
        depth=_depth_facts(samples),
        lidar=measure_lidar(clouds) if LIDAR in found and clouds else None,
        path=path_facts(poses, stamps),
        complete_share=float(np.mean([set(found) <= set(frame.modalities) for frame in frames])),
        read_s=read_s,
        poses=tuple(pose for own in poses for pose in own),
        mounts=dict(sources[0].mounts),
        sample=tuple(samples[row] for row in _evenly(len(samples), _KEPT)),
    )


def _evenly(length: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, length - 1, min(length, count)).round().astype(int)).tolist() if length else []


def _recording(source: Source) -> Recording:
    stamps = source.stamps_ns()
    kind = type(source).__name__
    duration = (max(stamps) - min(stamps)) * 1e-9
    return Recording(source.name, _KINDS.get(kind, kind), len(source), duration, report_text(source.report))


def _sample(sources: Sequence[Source]) -> tuple[list[Sample], float]:
    """Pairs of successive frames, and seconds to read the second of a pair, which is the time per frame of a pass."""
    chosen = [sources[i] for i in _evenly(len(sources), _RECORDINGS)]
    samples: list[Sample] = []
    seconds: list[float] = []
    for source in chosen:
        stamps = source.stamps_ns()
        rows = _evenly(len(stamps) - 1, max(1, _FRAMES // 2 // len(chosen))) if len(stamps) > 1 else [0]
        pairs = {stamps[row] for row in rows} | {stamps[row + 1] for row in rows if row + 1 < len(stamps)}
        second = {stamps[row + 1] for row in rows if row + 1 < len(stamps)}
        last = time.perf_counter()
        for sample in samples_at(source, pairs):
            now = time.perf_counter()
            if sample.frame.stamp_ns in second:
                seconds.append(now - last)
            samples.append(sample)
            last = time.perf_counter()
    return samples, float(np.median(seconds)) if seconds else 0.0


def _camera_facts(samples: Sequence[Sample]) -> CameraFacts | None:
    frames = [sample.frame for sample in samples if sample.frame.image is not None]
    if not frames:
        return None
    grey = np.array([frame.image[::4, ::4].mean() / 255 for frame in frames])
    height, width = frames[0].image.shape[:2]
    cameras = [frame.camera for frame in frames if frame.camera is not None]
    lens = cameras[0].distortion if cameras else None
    return CameraFacts(
        size=(int(width), int(height)),
        is_calibrated=bool(cameras),
        distortion="" if lens is None else lens.model,
        brightness=float(np.median(grey)),
        dark_share=float(np.mean(grey < _DARK)),
    )


def _depth_facts(samples: Sequence[Sample]) -> DepthFacts | None:
    images = [sample.frame.depth_m for sample in samples if sample.frame.depth_m is not None]
    if not images:
        return None
    height, width = images[0].shape
    values = np.concatenate([image[::4, ::4].ravel() for image in images])
    measured = values[values > 0]
    if not len(measured):
        raise DataError(
            "none of the sampled depth images has a measurement; check depth topic, its unit and the camera's driver"
        )
    return DepthFacts(
        (int(width), int(height)),
        len(measured) / len(values),
        float(np.median(measured)),
        float(np.percentile(measured, 99)),
    )


def has_known_camera(found: Survey) -> bool:
    """Whether the camera matrix of pictures, or of depth images, is known."""
    return any(sample.frame.camera is not None for sample in found.sample)


def sensors_of(found: Survey) -> tuple[str, ...]:
    """The modalities that a dense system can use: mounted, and in the view of a known camera where they need one."""
    known = has_known_camera(found)
    return tuple(name for name in found.mounted if name == LIDAR or (name in (IMAGE, DEPTH) and known))
