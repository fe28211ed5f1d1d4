# SPDX-License-Identifier: Apache-2.0
"""A model's answers to frames whose true poses are known, for every set of sensors: what it is calibrated with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from training.data.dataset import PreparedDataset
from training.data.model_input import sensor_sets
from training.evaluation.consistency import PARTS, map_errors, nees
from training.prediction import predict
from vmloc_ros.core.checkpoint import CheckpointHeader, Uncertainty
from vmloc_ros.core.confidence import ReferenceFeatures, stack_outlier_scores
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import prediction_covariance
from vmloc_ros.core.models import PoseModel, Prediction
from vmloc_ros.core.preprocessing import Preprocessor

_GROSS = 5.0  # of a normal distribution, fewer than one in a billion errors are so many times the median


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """To N frames, on the CPU.

    Attributes:
        rows: ``(N,)`` of the data.
        positions_m: ``(N, 3)``.
        quaternions_wxyz: ``(N, 4)``.
        covariances: ``(N, 6, 6)`` the system's own, as :func:`vmloc_ros.core.localizer.prediction_covariance` has it.
        lost: ``(N,)`` bool: the system says itself that these are no answers.
        cues: ``(N, C)`` of :func:`vmloc_ros.core.confidence.stack_outlier_scores`; NaN where a frame lacks a sensor of
            the set, and C is 0 where nothing is remembered to compare frames with.
        solved: whether the covariances are those of a solver, not of samples.
    """

    rows: Tensor
    positions_m: Tensor
    quaternions_wxyz: Tensor
    covariances: Tensor
    lost: Tensor
    cues: Tensor
    solved: bool

    @staticmethod
    def of(rows: Tensor, prediction: Prediction, cues: NDArray[np.float64]) -> HeldOut:
        own = np.stack([prediction_covariance(prediction, i) for i in range(len(rows))])
        lost = np.zeros(len(rows), bool) if prediction.lost is None else prediction.lost
        arrays = prediction.positions_m, prediction.quaternions_wxyz, own, lost, cues
        return HeldOut(rows, *(torch.from_numpy(x) for x in arrays), prediction.covariances is not None)

    def __len__(self) -> int:
        return len(self.rows)

    def poses(self) -> list[Pose]:
        return [Pose(p, q) for p, q in zip(self.positions_m.numpy(), self.quaternions_wxyz.numpy(), strict=True)]

    def some(self, kept: Tensor) -> HeldOut:
        """Those of the frames ``(N,)`` bool."""
        return HeldOut(*(getattr(self, field.name)[kept] for field in fields(self)[:-1]), self.solved)


BySensors = dict[tuple[str, ...], HeldOut]


def predict_held_out(
    header: CheckpointHeader,
    model: PoseModel,
    data: PreparedDataset,
    rows: Tensor,
    device: torch.device,
    memories: Mapping[str, ReferenceFeatures] | None = None,
) -> BySensors:
    """Answers to the rows, and for every smaller set of sensors to those that have it, the others being withheld.

    Args:
        memories: what cues of the confidence compare the frames with, by modality.

    Raises:
        ModelError: an answer is not finite.
    """
    preprocessor, samples = Preprocessor(header.preprocess), Uncertainty().samples
    modalities, known = header.preprocess.modalities, memories or {}
    complete = sensor_sets(data, rows, modalities)

    def answers(asked: Tensor, names: tuple[str, ...]) -> HeldOut:
        prediction = predict(model, data, asked, preprocessor, header.pose_codec, device, samples, names)
        having = torch.isin(asked, complete.get(names, asked[:0])).numpy()
        return HeldOut.of(asked, prediction, _cues(known, names, prediction, having))

    fewer = {names: having for names, having in complete.items() if names != modalities}
    return {modalities: answers(rows, modalities), **{names: answers(having, names) for names, having in fewer.items()}}


def _cues(
    memories: Mapping[str, ReferenceFeatures],
    names: tuple[str, ...],
    prediction: Prediction,
    having: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """``(N, C)``; of rows that have all of the sensors, NaN for the others."""
    if not (having.any() and set(names) <= set(memories)):
        return np.empty((len(having), 0))
    found = stack_outlier_scores(
        memories,
        names,
        {name: prediction.features[name].cpu().numpy()[having] for name in names},
        prediction.positions_m[having],
        prediction.quaternions_wxyz[having],
        None if prediction.outlier_scores is None else prediction.outlier_scores[having],
    )
    cues = np.full((len(having), found.shape[1]), np.nan)
    cues[having] = found
    return cues


def join(parts: Sequence[BySensors]) -> BySensors:
    """All answers together; a set of sensors may be lacking in some parts, and its cues, which are then lost, too."""
    joined = {}
    for names in dict.fromkeys(names for part in parts for names in part):
        having = [part[names] for part in parts if names in part]
        width = min(one.cues.shape[1] for one in having)
        if any(one.cues.shape[1] != width for one in having):
            having = [replace(one, cues=one.cues[:, :0]) for one in having]
        columns = (torch.cat([getattr(one, field.name) for one in having]) for field in fields(HeldOut)[:-1])
        joined[names] = HeldOut(*columns, having[0].solved)
    return joined


def to_state(answers: BySensors) -> list[dict[str, Any]]:
    """Tensors and plain values, for a file."""
    return [
        {"modalities": list(names), **{field.name: getattr(one, field.name) for field in fields(HeldOut)}}
        for names, one in answers.items()
    ]


def from_state(state: Sequence[Mapping[str, Any]]) -> BySensors:
    """What :func:`to_state` was given."""
    return {
        tuple(one["modalities"]): HeldOut(**{name: x for name, x in one.items() if name != "modalities"})
        for one in state
    }


def without_gross_errors(data: PreparedDataset, answers: HeldOut) -> HeldOut:
    """Those that are neither lost nor grossly wrong, in the order of recording; all where nothing else is left."""
    answers = answers.some(answers.rows.argsort())  # folds come one after the other
    found = answers.some(~answers.lost) if not bool(answers.lost.all()) else answers
    return found.some(~torch.from_numpy(gross_error_mask(data, found)))


def gross_error_mask(data: PreparedDataset, answers: HeldOut) -> NDArray[np.bool_]:
    """``(N,)``: those that are grossly wrong, which is said of a solver alone."""
    if not answers.solved:
        return np.zeros(len(answers), bool)
    truth = [data.poses[i] for i in answers.rows.tolist()]
    return gross_errors(truth, answers.poses(), answers.covariances.numpy())


def gross_errors(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> NDArray[np.bool_]:
    """Which errors ``(N,)`` of a solver are of another kind than the rest: five times the median, or more.

    A solver that finds the wrong one of several places is off by metres, whatever its covariance: no covariance could
    hold these and still say anything of the others. To tell them is the confidence's task.

    Args:
        covariances: ``(N, 6, 6)``, by which errors are measured, position and rotation each for itself.
    """
    errors, matrices = map_errors(truth, estimates), np.asarray(covariances)
    gross = np.zeros(len(errors), bool)
    for part in ("position", "rotation"):
        rows = PARTS[part]
        distances = np.sqrt(nees(errors[:, rows], matrices[:, rows, rows]))
        gross |= distances > _GROSS * np.median(distances)
    return gross
