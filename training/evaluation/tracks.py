# SPDX-License-Identifier: Apache-2.0
"""Estimates of whole recordings, from the localizer that the node uses."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.evaluation.corruption import NO_CORRUPTION, Corruption, corrupt
from training.evaluation.metrics import PoseErrors, pose_errors
from training.sources.base import Source
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Estimate, Frame, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer, Stream
from vmloc_ros.core.preprocessing import PreprocessConfig
from vmloc_ros.core.progress import with_progress

logger = logging.getLogger(__name__)

_EXAMPLES = 4  # frames that are kept to show the corruption
_PAUSE_S = 1.0  # the same limit as in the localizer's Stream


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedTrack:
    """Estimates of one source with their truth, in time order.

    Attributes:
        name: a valid folder name, unique within the evaluation.
    """

    name: str
    truth: list[Pose]
    estimates: list[Estimate]

    @property
    def poses(self) -> list[Pose]:
        return [estimate.map_from_body for estimate in self.estimates]

    @property
    def stamps_ns(self) -> list[int]:
        return [estimate.stamp_ns for estimate in self.estimates]

    @property
    def errors(self) -> PoseErrors:
        return pose_errors(self.truth, self.poses)

    def runs(self) -> list[EvaluatedTrack]:
        """The parts between pauses, which are steps of more than 1 s and more than three times the median step."""
        steps_s = np.diff(self.stamps_ns) / 1e9
        if not len(steps_s):
            return [self]
        breaks = np.flatnonzero(steps_s > max(_PAUSE_S, 3 * float(np.median(steps_s)))) + 1
        limits = [0, *breaks.tolist(), len(self.truth)]
        return [
            EvaluatedTrack(self.name, self.truth[start:end], self.estimates[start:end])
            for start, end in itertools.pairwise(limits)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A checkpoint's estimates for all sources.

    Attributes:
        system: name of the model.
        preprocess: the model's preprocessing.
        examples: some frames before and after the corruption; empty without corruption.
        checkpoint: path of its file.
    """

    tracks: list[EvaluatedTrack]
    system: str
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    corruption: Corruption = NO_CORRUPTION
    examples: list[tuple[Frame, Frame]] = field(default_factory=list)
    checkpoint: str = ""

    @property
    def name(self) -> str:
        """The system, and the corruption of its input."""
        return f"{self.system} ({self.corruption})" if self.corruption.tag else self.system

    @property
    def truth(self) -> list[Pose]:
        return [pose for track in self.tracks for pose in track.truth]

    @property
    def estimates(self) -> list[Estimate]:
        return [estimate for track in self.tracks for estimate in track.estimates]

    @property
    def errors(self) -> PoseErrors:
        return pose_errors(self.truth, [estimate.map_from_body for estimate in self.estimates])


def evaluate(
    localizer: Localizer,
    sources: Sequence[Source],
    progress: bool = True,
    lookahead: int = 0,
    corruption: Corruption = NO_CORRUPTION,
) -> Evaluation:
    """Localize every frame of the sources, each source as one stream.

    Args:
        lookahead: see :class:`vmloc_ros.core.stream.Stream`.
        corruption: applied to every frame first; frames without any input left are skipped, and counted in the log.

    Raises:
        ConfigError: ``lookahead`` or ``corruption`` does not fit the system.
        DataError: a source's poses are of another body than the checkpoint's, there are no frames, or the corruption
            removes all input of the system.
    """
    corruption.check(localizer.modalities)
    every = max(1, math.ceil(sum(len(source) for source in sources) / _EXAMPLES)) if corruption.tag else None
    tracks: list[EvaluatedTrack] = []
    examples: list[tuple[Frame, Frame]] = []
    for source in sources:
        _check_frames(localizer, source)
        bar = with_progress(source, len(source), source.name, "frames", disable=not progress)
        frames = _corrupted(bar, corruption, localizer, source.name)
        if every:
            frames = _with_examples(frames, every, sum(len(track.truth) for track in tracks), examples)
        track = _localize(localizer.stream(lookahead), frames, source.name, [track.name for track in tracks])
        if track.estimates:
            tracks.append(track)
    if not tracks:
        raise DataError("there is no frame to evaluate")
    return Evaluation(tracks, localizer.header.model.name, localizer.header.preprocess, corruption, examples)


def _localize(
    stream: Stream, frames: Iterable[tuple[Sample, Frame]], source: str, taken: Collection[str]
) -> EvaluatedTrack:
    truth: list[Pose] = []
    stamps_ns: list[int] = []
    estimates: list[Estimate] = []
    for sample, frame in frames:
        truth.append(sample.map_from_body)
        stamps_ns.append(frame.stamp_ns)
        estimates += stream.feed(frame)
    estimates += stream.flush()
    assert [estimate.stamp_ns for estimate in estimates] == stamps_ns, "a stream has an estimate for every frame"
    return EvaluatedTrack(_track_name(source, taken), truth, estimates)


def _with_examples(
    frames: Iterable[tuple[Sample, Frame]], every: int, first: int, examples: list[tuple[Frame, Frame]]
) -> Iterator[tuple[Sample, Frame]]:
    """The frames, while every so many of them are appended to the examples, before and after the corruption.

    Args:
        first: number of the first frame.
    """
    for number, (sample, frame) in enumerate(frames, start=first):
        if number % every == 0:
            examples.append((sample.frame, frame))
        yield sample, frame


def _check_frames(localizer: Localizer, source: Source) -> None:
    if source.body_frame != localizer.body_frame:
        raise DataError(
            f"{source.name} has poses of {source.body_frame!r}, the checkpoint predicts {localizer.body_frame!r}; "
            "their difference would not be a localization error"
        )
    if source.map_frame != localizer.map_frame:
        logger.warning("%s has poses in %s, the checkpoint in %s", source.name, source.map_frame, localizer.map_frame)


def _track_name(name: str, taken: Collection[str]) -> str:
    stem = re.sub(r"[^\w.-]+", "_", name).strip(".") or "data"  # a source may be called ".."
    number, unique = 1, stem
    while unique in taken:
        number += 1
        unique = f"{stem}_{number}"
    return unique


def _corrupted(
    samples: Iterable[Sample], corruption: Corruption, localizer: Localizer, name: str
) -> Iterator[tuple[Sample, Frame]]:
    """Samples with their corrupted frames, without those that have no input left that the model can use."""
    skipped = 0
    for sample in samples:
        frame = corrupt(sample.frame, corruption.levels, corruption.seed, localizer.header.preprocess)
        usable = localizer.usable(frame)
        if (corruption.tag or usable is not frame) and not set(usable.modalities) & set(localizer.modalities):
            skipped += 1
        else:
            yield sample, frame
    if skipped:
        reason = f"with {corruption}" if corruption.tag else "since their camera is not known"
        logger.warning("%s: %d frames skipped: no input of the model is left %s", name, skipped, reason)
