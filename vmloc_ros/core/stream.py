# SPDX-License-Identifier: Apache-2.0
"""Frames that come one after another: systems that read clips keep the features of the frames before."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.errors import ConfigError, ModelError
from vmloc_ros.core.frame import Estimate, Frame
from vmloc_ros.core.models import ClipModel, ModelInput, PoseModel, Prediction
from vmloc_ros.core.models.base import decode_outputs


class FrameLocalizer(Protocol):
    """What a :class:`Stream` needs of :class:`vmloc_ros.core.localizer.Localizer`, which makes streams."""

    header: CheckpointHeader
    model: PoseModel

    def localize(self, frame: Frame, batch: ModelInput | None = None) -> Estimate: ...

    def preprocess(self, frame: Frame) -> ModelInput: ...

    def present(self, batch: ModelInput) -> tuple[str, ...]: ...

    def estimate(self, stamp_ns: int, modalities: tuple[str, ...], prediction: Prediction) -> Estimate: ...


class Stream:
    """Localizes frames in the order of their stamps, by clips where the system reads clips.

    A system that reads clips (``vidloc``) predicts from its newest ``clip_length`` frames, each of which passes the
    image network once. Every other system localizes each frame on its own.

    Args:
        lookahead: number of later frames to wait for before a frame is localized. 0 uses the past alone, without
            delay, as a robot needs; a bidirectional system gains from more.
        max_gap_s: a larger gap between successive stamps ends the clip.

    Raises:
        ConfigError: ``lookahead`` is negative or not less than the clip's length (1 for a system without clips).
    """

    def __init__(self, localizer: FrameLocalizer, lookahead: int = 0, max_gap_s: float = 1.0) -> None:
        self._localizer = localizer
        self._model = localizer.model if isinstance(localizer.model, ClipModel) else None
        limit = 1 if self._model is None else self._model.clip_length
        if not 0 <= lookahead < limit:
            raise ConfigError(
                f"lookahead must be at least 0 and less than the {limit} frame(s) that "
                f"{localizer.header.model.name} looks at together, got {lookahead}"
            )
        self._lookahead, self._max_gap_ns = lookahead, round(max_gap_s * 1e9)
        self._features: deque[Tensor] = deque(maxlen=limit)
        self._waiting: deque[tuple[int, tuple[str, ...]]] = deque()  # stamps and modalities of frames not yet localized
        self._newest_ns = 0

    @torch.inference_mode()
    def feed(self, frame: Frame, batch: ModelInput | None = None) -> list[Estimate]:
        """Take in a frame and return the estimates that are due: one a frame, later by the lookahead.

        A stamp that goes back or leaves a gap ends the clip: waiting frames are localized, and a new clip begins.

        Args:
            batch: what :meth:`FrameLocalizer.preprocess` made of the frame, where that has been done.

        Raises:
            ModelError: the input or a feature is not usable; the frame is then not part of the clip.
        """
        if self._model is None:
            return [self._localizer.localize(frame, batch)]
        batch = self._localizer.preprocess(frame) if batch is None else batch
        features = self._model.frame_features(batch)
        if not bool(torch.isfinite(features).all()):  # the clip would yield no estimate for as long as it holds them
            raise ModelError(f"frame at {frame.stamp_ns} ns: the network's features are not finite")
        broken = self._features and not 0 < frame.stamp_ns - self._newest_ns <= self._max_gap_ns
        due = self.flush() if broken else []
        self._newest_ns = frame.stamp_ns
        self._features.append(features[0])
        self._waiting.append((frame.stamp_ns, self._localizer.present(batch)))
        return due + self._localize_waiting(self._lookahead)

    @torch.inference_mode()
    def flush(self) -> list[Estimate]:
        """Localize the frames that still wait, at the end of the data, and clear the clip."""
        due = self._localize_waiting(0)
        self._features.clear()
        return due

    def _localize_waiting(self, keep: int) -> list[Estimate]:
        """Estimates of all waiting frames but the newest ``keep``."""
        if self._model is None or len(self._waiting) <= keep:
            return []
        outputs = self._model.decode_window(torch.stack(list(self._features)))
        estimates = []
        while len(self._waiting) > keep:
            row = outputs[-len(self._waiting)]
            stamp_ns, modalities = self._waiting.popleft()
            prediction = decode_outputs(row.view(1, 1, -1), self._localizer.header.pose_codec)
            estimates.append(self._localizer.estimate(stamp_ns, modalities, prediction))
        return estimates
