# SPDX-License-Identifier: Apache-2.0
"""Training without gradients: the system stores descriptors and poses of its training frames."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.data.dataset import PreparedDataset
from training.data.model_input import batches
from vmloc_ros.core.models import MemoryModel
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import progress_bar


@torch.no_grad()
def store_frames(
    model: MemoryModel,
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Store descriptors and true poses of the rows of the data in the model, in place of earlier ones."""
    model.eval()
    described = []
    with progress_bar(len(rows), "storing frames", "frames", disable=not progress) as bar:
        for batch in batches(data, rows, preprocessor, device, model.needs_geometry):
            described.append(model.describe(batch))
            bar.update(len(batch))
    poses = [data.poses[i] for i in rows.tolist()]
    model.store_frames(
        torch.cat(described),
        np.stack([pose.position_m for pose in poses]),
        np.stack([pose.quaternion_wxyz for pose in poses]),
    )
