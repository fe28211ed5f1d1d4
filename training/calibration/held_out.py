# SPDX-License-Identifier: Apache-2.0
"""Estimates for frames that training has not seen, for every set of sensors: what a model is calibrated on."""

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
from vmloc_ros.core.confidence import stack_outlier_scores
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import prediction_covariance
from vmloc_ros.core.models import PoseModel, Prediction
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import progress_bar
from vmloc_ros.core.reference_features import ReferenceFeatures

_GROSS = 5.0  # times the median error; fewer than one in a billion normally distributed errors are that large


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutEstimates:
    """Estimates for N held-out frames, on the CPU.

    Attributes:
        rows: ``(N,)`` of the prepared data.
        positions_m: ``(N, 3)`` in the map.
        quaternions_wxyz: ``(N, 4)`` map from body.
        covariances: ``(N, 6, 6)`` the system's own, of :func:`vmloc_ros.core.localizer.prediction_covariance`.
        lost: ``(N,)`` bool: the system itself reports that it found no pose.
        outlier_scores: ``(N, C)`` of :func:`vmloc_ros.core.confidence.stack_outlier_scores`; NaN where a frame lacks a
            sensor of the set. C is 0 where there are no reference features to compare frames with.
        solved: whether the covariances are those of a solver, not of samples.
    """

    rows: Tensor
    positions_m: Tensor
    quaternions_wxyz: Tensor
    covariances: Tensor
    lost: Tensor
    outlier_scores: Tensor
    solved: bool

    @staticmethod
    def from_prediction(rows: Tensor, prediction: Prediction, outlier_scores: NDArray[np.float64]) -> HeldOutEstimates:
        own = np.stack([prediction_covariance(prediction, i) for i in range(len(rows))])
        lost = np.zeros(len(rows), bool) if prediction.lost is None else prediction.lost
        arrays = prediction.positions_m, prediction.quaternions_wxyz, own, lost, outlier_scores
        return HeldOutEstimates(rows, *(torch.from_numpy(x) for x in arrays), prediction.covariances is not None)

    def __len__(self) -> int:
        return len(self.rows)

    def poses(self) -> list[Pose]:
        return [Pose(p, q) for p, q in zip(self.positions_m.numpy(), self.quaternions_wxyz.numpy(), strict=True)]

    def select(self, index: Tensor) -> HeldOutEstimates:
        """The estimates at an index: a mask ``(N,)`` bool, or an order of rows."""
        return HeldOutEstimates(*(getattr(self, field.name)[index] for field in fields(self)[:-1]), self.solved)


EstimatesBySensors = dict[tuple[str, ...], HeldOutEstimates]


def predict_held_out(
    header: CheckpointHeader,
    model: PoseModel,
    data: PreparedDataset,
    rows: Tensor,
    device: torch.device,
    references: Mapping[str, ReferenceFeatures] | None = None,
    name: str = "",
) -> EstimatesBySensors:
    """Estimates for the rows, and for every smaller set of sensors, with the others withheld, for those that have it.

    Args:
        references: by modality, the features that those of a frame are compared with.
        name: of the progress bar; empty: none is shown.

    Raises:
        ModelError: an estimate is not finite.
    """
    preprocessor, samples = Preprocessor(header.preprocess), Uncertainty().samples
    modalities, references = header.preprocess.modalities, references or {}
    complete = sensor_sets(data, rows, modalities)

    fewer = {names: having for names, having in complete.items() if names != modalities}
    wanted = {modalities: rows, **fewer}
    with progress_bar(sum(map(len, wanted.values())), name, "img", disable=not name) as bar:

        def estimate(names: tuple[str, ...], rows: Tensor) -> HeldOutEstimates:
            codec = header.pose_codec
            prediction = predict(model, data, rows, preprocessor, codec, device, samples, names, bar.update)
            has_all = torch.isin(rows, complete.get(names, rows[:0])).numpy()
            return HeldOutEstimates.from_prediction(
                rows, prediction, _outlier_scores(references, names, prediction, has_all)
            )

        return {names: estimate(names, having) for names, having in wanted.items()}


def _outlier_scores(
    references: Mapping[str, ReferenceFeatures],
    names: tuple[str, ...],
    prediction: Prediction,
    has_all: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Cues ``(N, C)`` of the rows that have all of the sensors, NaN for the others."""
    if not (has_all.any() and set(names) <= set(references)):
        return np.empty((len(has_all), 0))
    found = stack_outlier_scores(
        references,
        names,
        {name: prediction.features[name].cpu().numpy()[has_all] for name in names},
        prediction.positions_m[has_all],
        prediction.quaternions_wxyz[has_all],
        None if prediction.outlier_scores is None else prediction.outlier_scores[has_all],
    )
    outlier_scores = np.full((len(has_all), found.shape[1]), np.nan)
    outlier_scores[has_all] = found
    return outlier_scores


def join(parts: Sequence[EstimatesBySensors]) -> EstimatesBySensors:
    """Concatenate the estimates of each set of sensors, such as those of several folds.

    A set may be absent from some parts. Where parts have different numbers of outlier scores, these are dropped.
    """
    joined = {}
    for names in dict.fromkeys(names for part in parts for names in part):
        having = [part[names] for part in parts if names in part]
        width = min(one.outlier_scores.shape[1] for one in having)
        if any(one.outlier_scores.shape[1] != width for one in having):
            having = [replace(one, outlier_scores=one.outlier_scores[:, :0]) for one in having]
        columns = (torch.cat([getattr(one, field.name) for one in having]) for field in fields(HeldOutEstimates)[:-1])
        joined[names] = HeldOutEstimates(*columns, having[0].solved)
    return joined


def to_state(estimates: EstimatesBySensors) -> list[dict[str, Any]]:
    """Tensors and plain values, for a file."""
    return [
        {"modalities": list(names), **{field.name: getattr(one, field.name) for field in fields(HeldOutEstimates)}}
        for names, one in estimates.items()
    ]


def from_state(state: Sequence[Mapping[str, Any]]) -> EstimatesBySensors:
    """Inverse of :func:`to_state`; earlier versions named the outlier scores ``cues``."""
    renamed = [{"outlier_scores" if name == "cues" else name: x for name, x in one.items()} for one in state]
    return {tuple(one.pop("modalities")): HeldOutEstimates(**one) for one in renamed}


def without_gross_errors(data: PreparedDataset, held_out: HeldOutEstimates) -> HeldOutEstimates:
    """Drop lost frames and gross errors, in the order of recording; where all frames are lost, drop none of them."""
    held_out = held_out.select(held_out.rows.argsort())  # folds come one after the other
    found = held_out.select(~held_out.lost) if not bool(held_out.lost.all()) else held_out
    return found.select(~torch.from_numpy(gross_error_mask(data, found)))


def gross_error_mask(data: PreparedDataset, held_out: HeldOutEstimates) -> NDArray[np.bool_]:
    """Which estimates ``(N,)`` are gross errors; none, unless a solver made them."""
    if not held_out.solved:
        return np.zeros(len(held_out), bool)
    truth = [data.poses[i] for i in held_out.rows.tolist()]
    return gross_errors(truth, held_out.poses(), held_out.covariances.numpy())


def gross_errors(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> NDArray[np.bool_]:
    """Which estimates ``(N,)`` of a solver have more than five times the median error, in position or in rotation.

    A solver that takes one place for another is off by metres, whatever its covariance: a covariance that held these
    errors would be useless for all others. Detecting them is the confidence's task.

    Args:
        covariances: ``(N, 6, 6)``; an error's length is its Mahalanobis distance.
    """
    errors, matrices = map_errors(truth, estimates), np.asarray(covariances)
    gross = np.zeros(len(errors), bool)
    for part in ("position", "rotation"):
        rows = PARTS[part]
        distances = np.sqrt(nees(errors[:, rows], matrices[:, rows, rows]))
        gross |= distances > _GROSS * np.median(distances)
    return gross
