# SPDX-License-Identifier: Apache-2.0
"""Run the robot's own localizer over sources."""

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
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.preprocessing import PreprocessConfig
from vmloc_ros.core.progress import with_progress

logger = logging.getLogger(__name__)

_EXAMPLES = 4
_PAUSE_S = 1.0  # as the localizer's Stream has it


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedTrack:
    """Estimates of one source with their truth, in time order.

    Attributes:
        name: fit for a folder, and no other track's of the evaluation.
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
        """The parts between pauses, where the recording went on elsewhere: more than 1 s and thrice the usual step."""
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
    """What one checkpoint answered, and to what.

    Attributes:
        system: name of the model.
        preprocess: how the model sees frames.
        examples: some of the frames, before and after the corruption; none without.
        checkpoint: its file.
    """

    tracks: list[EvaluatedTrack]
    system: str
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    corruption: Corruption = NO_CORRUPTION
    examples: list[tuple[Frame, Frame]] = field(default_factory=list)
    checkpoint: str = ""

    @property
    def name(self) -> str:
        """The system and what was done to its input."""
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
        corruption: done to every frame first; frames that it leaves nothing to localize by are left out, and counted
            in the log.

    Raises:
        ConfigError: ``lookahead`` or ``corruption`` does not fit the system.
        DataError: a source's poses are of another body than the checkpoint's, there are no frames, or corruption
            leaves the system nothing.
    """
    corruption.check(localizer.modalities)
    every = max(1, math.ceil(sum(len(source) for source in sources) / _EXAMPLES)) if corruption.tag else None
    tracks: list[EvaluatedTrack] = []
    examples: list[tuple[Frame, Frame]] = []
    for source in sources:
        _check_frames(localizer, source)
        stream = localizer.stream(lookahead)
        truth: list[Pose] = []
        stamps_ns: list[int] = []
        estimates: list[Estimate] = []
        samples = with_progress(source, len(source), source.name, "frames", disable=not progress)
        for sample, frame in _corrupted(samples, corruption, localizer.header.preprocess, source.name):
            if every and (sum(len(track.truth) for track in tracks) + len(truth)) % every == 0:
                examples.append((sample.frame, frame))
            truth.append(sample.map_from_body)
            stamps_ns.append(frame.stamp_ns)
            estimates += stream.feed(frame)
        estimates += stream.flush()
        assert [estimate.stamp_ns for estimate in estimates] == stamps_ns, "a stream answers every frame, in order"
        if estimates:
            tracks.append(EvaluatedTrack(_track_name(source.name, [track.name for track in tracks]), truth, estimates))
    if not tracks:
        raise DataError("there is no frame to evaluate")
    return Evaluation(tracks, localizer.header.model.name, localizer.header.preprocess, corruption, examples)


def _check_frames(localizer: Localizer, source: Source) -> None:
    if source.body_frame != localizer.body_frame:
        raise DataError(
            f"{source.name} has poses of {source.body_frame!r}, the checkpoint predicts {localizer.body_frame!r}; "
            "their difference would be no localization error"
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
    samples: Iterable[Sample], corruption: Corruption, preprocess: PreprocessConfig, name: str
) -> Iterator[tuple[Sample, Frame]]:
    """Samples with their corrupted frame."""
    left_out = 0
    for sample in samples:
        frame = corrupt(sample.frame, corruption.levels, corruption.seed, preprocess)
        if corruption.tag and not set(frame.modalities) & set(preprocess.modalities):
            left_out += 1
        else:
            yield sample, frame
    if left_out:
        logger.warning("%s: %d frames left out: nothing to localize by with %s", name, left_out, corruption)
