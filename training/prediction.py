# SPDX-License-Identifier: Apache-2.0
"""A model's answers to prepared data, in batches: what training validates and fits the covariance with."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from training.data.dataset import PreparedDataset
from training.data.model_input import batches
from training.data.sampler import segments
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ClipModel, PoseModel, Prediction
from vmloc_ros.core.models.base import decode_vectors
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
) -> Prediction:
    """Answers to the rows, in evaluation mode; systems that read clips look back within each run of rows.

    Args:
        kept: the modalities that the system gets, as if the other sensors were missing; None gives it all.

    Raises:
        ModelError: an answer is not finite, or a row has none of the modalities.
    """
    model.eval()
    inputs = batches(data, rows, preprocessor, device, model.needs_geometry)
    if kept is not None:
        inputs = (batch.only(kept) for batch in inputs)
    if isinstance(model, ClipModel):
        features = torch.cat([model.frame_features(batch) for batch in inputs])
        return decode_vectors(_decode_in_order(model, features, segments(data.sequences, rows)).unsqueeze(0), codec)
    return _joined([model.locate(batch, codec, samples) for batch in inputs])


@torch.no_grad()
def modality_features(
    model: PoseModel, data: PreparedDataset, rows: Tensor, preprocessor: Preprocessor, name: str, device: torch.device
) -> Tensor | None:
    """What the system saw of one modality ``(N, F)`` in evaluation mode; None for systems that do not tell.

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
    """One for each row of a prediction."""
    return [Pose(p, q) for p, q in zip(prediction.positions_m, prediction.quaternions_wxyz, strict=True)]


def _joined(parts: list[Prediction]) -> Prediction:
    """One prediction of all batches; without the posterior, which nobody needs of many."""
    first = parts[0]
    return Prediction(
        np.concatenate([part.positions_m for part in parts]),
        np.concatenate([part.quaternions_wxyz for part in parts]),
        np.concatenate([part.sample_positions_m for part in parts], axis=1),
        np.concatenate([part.sample_quaternions_wxyz for part in parts], axis=1),
        None if first.covariances is None else np.concatenate([part.covariances for part in parts]),
        features={name: torch.cat([part.features[name] for part in parts]) for name in first.features},
        outlier_scores=None
        if first.outlier_scores is None
        else np.concatenate([part.outlier_scores for part in parts]),
        lost=None if first.lost is None else np.concatenate([part.lost for part in parts]),
    )


def _decode_in_order(model: ClipModel, features: Tensor, runs: list[Tensor]) -> Tensor:
    """Pose vectors ``(N, 6)``, each from the newest ``clip_length`` frames of its run, as a robot would have them."""
    vectors, start = [], 0
    for run in runs:
        seen = features[start : start + len(run)]
        vectors += [
            model.decode_window(seen[max(0, end - model.clip_length) : end])[-1] for end in range(1, len(run) + 1)
        ]
        start += len(run)
    return torch.stack(vectors)
