# SPDX-License-Identifier: Apache-2.0
"""A model's answers to frames whose true poses are known, for every set of sensors: what a covariance is fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.dataset import PreparedDataset
from training.predict import predict, sensor_sets
from vmloc_ros.core.checkpoint import CheckpointHeader, Uncertainty
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import prediction_covariance
from vmloc_ros.core.models import PoseModel, Prediction
from vmloc_ros.core.preprocessing import Preprocessor


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """To N frames, on the CPU.

    Attributes:
        rows: ``(N,)`` of the data.
        positions_m: ``(N, 3)``.
        quaternions_wxyz: ``(N, 4)``.
        covariances: ``(N, 6, 6)`` the system's own, as :func:`vmloc_ros.core.localizer.prediction_covariance` has it.
        lost: ``(N,)`` bool: the system says itself that these are no answers.
        solved: whether the covariances are those of a solver, not of samples.
    """

    rows: Tensor
    positions_m: Tensor
    quaternions_wxyz: Tensor
    covariances: Tensor
    lost: Tensor
    solved: bool

    @staticmethod
    def of(rows: Tensor, prediction: Prediction) -> Answers:
        own = np.stack([prediction_covariance(prediction, i) for i in range(len(rows))])
        lost = np.zeros(len(rows), bool) if prediction.lost is None else prediction.lost
        arrays = prediction.positions_m, prediction.quaternions_wxyz, own, lost
        return Answers(rows, *(torch.from_numpy(x) for x in arrays), prediction.covariances is not None)

    def __len__(self) -> int:
        return len(self.rows)

    def poses(self) -> list[Pose]:
        return [Pose(p, q) for p, q in zip(self.positions_m.numpy(), self.quaternions_wxyz.numpy(), strict=True)]

    def found(self) -> Answers:
        """Those that are not lost; all where nothing else is left."""
        kept = ~self.lost if not bool(self.lost.all()) else torch.ones_like(self.lost)
        return Answers(*(getattr(self, field.name)[kept] for field in fields(self)[:-1]), self.solved)


BySensors = dict[tuple[str, ...], Answers]


def ask(
    header: CheckpointHeader, model: PoseModel, data: PreparedDataset, rows: Tensor, device: torch.device
) -> BySensors:
    """Answers to the rows, and for every smaller set of sensors to those that have it, the others being withheld.

    Raises:
        ModelError: an answer is not finite.
    """
    preprocessor, samples, modalities = (
        Preprocessor(header.preprocess),
        Uncertainty().samples,
        header.preprocess.modalities,
    )

    def answers(asked: Tensor, kept: tuple[str, ...] | None = None) -> Answers:
        prediction = predict(model, data, asked, preprocessor, header.pose_codec, device, samples, kept)
        return Answers.of(asked, prediction)

    fewer = {names: having for names, having in sensor_sets(data, rows, modalities).items() if names != modalities}
    return {modalities: answers(rows), **{names: answers(having, names) for names, having in fewer.items()}}


def join(parts: Sequence[BySensors]) -> BySensors:
    """All answers together; a set of sensors may be lacking in some parts."""
    joined = {}
    for names in dict.fromkeys(names for part in parts for names in part):
        having = [part[names] for part in parts if names in part]
        columns = (torch.cat([getattr(one, field.name) for one in having]) for field in fields(Answers)[:-1])
        joined[names] = Answers(*columns, having[0].solved)
    return joined


def to_state(answers: BySensors) -> list[dict[str, Any]]:
    """Tensors and plain values, for a file."""
    return [
        {"modalities": list(names), **{field.name: getattr(one, field.name) for field in fields(Answers)}}
        for names, one in answers.items()
    ]


def from_state(state: Sequence[Mapping[str, Any]]) -> BySensors:
    """What :func:`to_state` was given."""
    return {
        tuple(one["modalities"]): Answers(**{name: x for name, x in one.items() if name != "modalities"})
        for one in state
    }
