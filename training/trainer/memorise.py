# SPDX-License-Identifier: Apache-2.0
"""What takes the place of gradient steps for systems that remember their training frames."""

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
def memorise(
    model: MemoryModel,
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Let the model remember the rows and their poses, and nothing else."""
    model.eval()
    described = []
    with progress_bar(len(rows), "memorising", "frames", disable=not progress) as bar:
        for batch in batches(data, rows, preprocessor, device, model.needs_geometry):
            described.append(model.describe(batch))
            bar.update(len(batch))
    poses = [data.poses[i] for i in rows.tolist()]
    model.memorise(
        torch.cat(described),
        np.stack([pose.position_m for pose in poses]),
        np.stack([pose.quaternion_wxyz for pose in poses]),
    )
