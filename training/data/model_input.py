# SPDX-License-Identifier: Apache-2.0
"""Model input from prepared frames."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from training.data.augment import AugmentConfig, augment, drop_modalities, move_pixels, zero_dropped
from training.data.dataset import PreparedDataset
from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.models import ModelInput
from vmloc_ros.core.preprocessing import Preprocessor

_BATCH = 64


def model_input(tensors: dict[str, Tensor], present: dict[str, Tensor]) -> ModelInput:
    """Model input in channels-last layout, with which convolutions on the CPU are about twice as fast."""
    return ModelInput({name: x.contiguous(memory_format=torch.channels_last) for name, x in tensors.items()}, present)


def prepared_input(
    tensors: dict[str, Tensor],
    present: dict[str, Tensor],
    preprocessor: Preprocessor,
    offset: tuple[float, float] = (0.5, 0.5),
    intrinsics: Tensor | None = None,
    twists: Tensor | None = None,
    shown: Tensor | None = None,
) -> ModelInput:
    """Crop and normalise a prepared batch.

    Args:
        tensors: prepared tensors ``(B, C, H, W)`` by modality.
        present: ``(B,)`` bool by modality.
        offset: position of the crop, see :meth:`Preprocessor.normalise`.
        intrinsics: ``(B, 3, 3)`` of the prepared images, for systems that need geometry; None for all others.
        twists: ``(B, 6)`` true velocities of the body, for training.
        shown: ``(B, H, W)`` bool of the prepared images, see :class:`ModelInput`.
    """
    batch = model_input(preprocessor.normalise(tensors, offset), present)
    if intrinsics is None:
        return batch
    return replace(
        batch,
        measured=preprocessor.crop(tensors, offset),
        intrinsics=preprocessor.crop_intrinsics(intrinsics, tensors, offset),
        twists=twists,
        shown=None if shown is None else preprocessor.crop({IMAGE: shown.unsqueeze(1)}, offset)[IMAGE].squeeze(1),
    )


def sensor_sets(data: PreparedDataset, rows: Tensor, modalities: Sequence[str]) -> dict[tuple[str, ...], Tensor]:
    """Rows that have all modalities of a set, by set, the largest first; sets that no row has are missing.

    The sets are the sensors that a robot may have left when others fail.
    """
    cpu = torch.device("cpu")
    chunks = [data.batch(chunk, cpu)[1] for chunk in rows.split(_BATCH)]
    present = {name: torch.cat([chunk[name] for chunk in chunks]) for name in modalities}
    sets = (names for count in range(len(modalities), 0, -1) for names in itertools.combinations(modalities, count))
    found = {names: rows[torch.stack([present[name] for name in names]).all(dim=0)] for names in sets}
    return {names: having for names, having in found.items() if len(having)}


def batches(
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    device: torch.device,
    geometry: bool = False,
) -> Iterator[ModelInput]:
    """Batches of the rows in their order, without augmentation, for networks in evaluation mode.

    Args:
        geometry: add measurements and intrinsics, for systems that need them.
    """
    for chunk in rows.split(_BATCH):
        intrinsics = data.intrinsics(chunk, device) if geometry else None
        yield prepared_input(*data.batch(chunk, device), preprocessor, intrinsics=intrinsics)


def training_input(
    tensors: dict[str, Tensor],
    present: dict[str, Tensor],
    config: AugmentConfig,
    preprocessor: Preprocessor,
    generator: torch.Generator,
    intrinsics: Tensor | None = None,
    twists: Tensor | None = None,
) -> ModelInput:
    """Augment, randomly crop and normalise a prepared batch, and withhold some of its modalities.

    Args:
        tensors: prepared tensors ``(B, C, H, W)`` by modality.
        present: ``(B,)`` bool by modality.
        generator: on the CPU; draws all that is random.
        intrinsics: ``(B, 3, 3)`` of the prepared images, for systems that need geometry; None for all others.
        twists: ``(B, 6)`` true velocities of the body, likewise.
    """
    tensors = augment(tensors, config, generator)
    shown = None
    if intrinsics is not None:
        tensors, intrinsics, shown = move_pixels(tensors, intrinsics, config, generator)
    offset = torch.rand(2, generator=generator).tolist()
    kept = drop_modalities(present, config.modality_dropout, generator)
    if config.dropped == "zeroed":
        tensors, kept = zero_dropped(tensors, present, kept), present
    return prepared_input(tensors, kept, preprocessor, (offset[0], offset[1]), intrinsics, twists, shown)
