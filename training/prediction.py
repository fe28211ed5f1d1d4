# SPDX-License-Identifier: Apache-2.0
"""Predictions for prepared data, in batches: for validation and calibration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor

from training.data.dataset import PreparedDataset
from training.data.model_input import batches
from training.data.sampler import segments
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ModelInput, PoseModel, Prediction
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor

_BATCH = 64


@torch.no_grad()
def predict(
    model: PoseModel,
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    codec: PoseCodec,
    device: torch.device,
    samples: int = 0,
    kept: Collection[str] | None = None,
    count: Callable[[int], object] | None = None,
) -> Prediction:
    """Predict the rows in evaluation mode; systems that read clips look back within each run of successive rows.

    Args:
        samples: alternative poses per row, as in :meth:`PoseModel.locate`.
        kept: the modalities that the system gets, as if the other sensors were missing; None gives it all.
        count: called with the number of rows of each batch that is done, to show the progress.

    Raises:
        ModelError: a prediction is not finite, or a row has none of the modalities.
    """
    model.eval()
    inputs = batches(data, rows, preprocessor, device, model.needs_geometry)
    if kept is not None:
        inputs = (batch.only(kept) for batch in inputs)
    if count is not None:
        inputs = _counted(inputs, count)
    return model.locate_frames(inputs, [len(run) for run in segments(data.sequences, rows)], codec, samples)


def _counted(inputs: Iterable[ModelInput], count: Callable[[int], object]) -> Iterator[ModelInput]:
    for batch in inputs:
        yield batch
        count(len(next(iter(batch.present.values()))))


@torch.no_grad()
def modality_features(
    model: PoseModel, data: PreparedDataset, rows: Tensor, preprocessor: Preprocessor, name: str, device: torch.device
) -> Tensor | None:
    """Features ``(N, F)`` of one modality in evaluation mode; None for systems that offer none.

    Raises:
        ModelError: a row lacks the modality.
    """
    model.eval()
    parts = []
    for batch in batches(data, rows, preprocessor, device, model.needs_geometry):
        features = model.modality_features(batch.only((name,)))
        if name not in features:
            return None
        parts.append(features[name])
    return torch.cat(parts)


def poses(prediction: Prediction) -> list[Pose]:
    """The pose of each row of a prediction."""
    return [Pose(p, q) for p, q in zip(prediction.positions_m, prediction.quaternions_wxyz, strict=True)]
