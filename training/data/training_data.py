# SPDX-License-Identifier: Apache-2.0
"""What training steps draw their batches from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from training.data.augment import AugmentConfig
from training.data.dataset import PreparedDataset
from training.data.model_input import training_input
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ModelInput
from vmloc_ros.core.preprocessing import Preprocessor


class TrainingData(Protocol):
    """Rows to draw batches from; a frame of the recording may have several.

    Attributes:
        poses: one for each row.
        sequences: ``(N,)`` number of the recording that each row belongs to.
    """

    poses: list[Pose]
    sequences: Tensor

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors and presence ``(B,)`` of the rows, by name; called in another thread than the rest."""
        ...

    def rows_of(self, frames: Tensor) -> Tensor:
        """The rows that show these frames of the recording."""
        ...

    def step_input(
        self,
        rows: Tensor,
        tensors: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> Any:
        """What :meth:`batch` gave, as the system's objective takes it.

        Args:
            generator: of random augmentation.
        """
        ...


class AugmentedFrames:
    """The frames themselves, augmented anew in every step.

    Args:
        geometry: add camera matrices and velocities, for systems that need them.
    """

    def __init__(
        self,
        data: PreparedDataset,
        augmentation: AugmentConfig,
        preprocessor: Preprocessor,
        device: torch.device,
        geometry: bool,
    ) -> None:
        self.poses, self.sequences = data.poses, data.sequences
        self._data, self._augmentation, self._preprocessor = data, augmentation, preprocessor
        self._device, self._geometry = device, geometry

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self._data.batch(rows, device)

    def rows_of(self, frames: Tensor) -> Tensor:
        return frames

    def step_input(
        self,
        rows: Tensor,
        tensors: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> ModelInput:
        geometry: tuple[Tensor | None, Tensor | None] = (None, None)
        if self._geometry:
            geometry = self._data.intrinsics(rows, self._device), self._data.twists[rows].to(self._device)
        augmented = dict(tensors), dict(present), self._augmentation, self._preprocessor, generator
        return training_input(*augmented, *geometry)
