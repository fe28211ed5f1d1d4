# SPDX-License-Identifier: Apache-2.0
"""Augmentation of prepared batches, on the device that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.projection import HEIGHT


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """How strongly training data are varied.

    Attributes:
        colour_jitter: brightness, contrast and saturation vary by factors within ``1 +- colour_jitter``, each
            colour channel's gain by a quarter of that.
        measurement_dropout: share of depth and lidar cells that lose their measurement, drawn per sample from 0 to
            this.
        modality_dropout: probability that a sample keeps one modality only, drawn evenly (VMLoc Eq. 18: 2/5).
        measurement_noise_m: standard deviation of noise added to measured depths and, along the beam, ranges, metres.
        dropped: what modality dropout makes of an input: ``absent``, or ``zeroed``: there, but black and without
            measurements, as published code has it.
    """

    colour_jitter: float = 0.4
    measurement_dropout: float = 0.2
    modality_dropout: float = 0.4
    measurement_noise_m: float = 0.0
    dropped: Literal["absent", "zeroed"] = "absent"

    def __post_init__(self) -> None:
        values = (self.colour_jitter, self.measurement_dropout, self.modality_dropout)
        if not all(0 <= value < 1 for value in values):
            raise ValueError(f"augmentation strengths lie in [0, 1), got {values}")
        if self.measurement_noise_m < 0:
            raise ValueError(f"measurement_noise_m must not be negative, got {self.measurement_noise_m}")


def augment(batch: Mapping[str, Tensor], config: AugmentConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Colour jitter on images, noisy and lost measurements on depth and lidar.

    Args:
        batch: prepared tensors ``(B, C, H, W)``: uint8 images, measurements whose last channel is validity.
        generator: on the CPU, so that a seed means the same on every device.
    """
    return {
        name: _jitter_colour(x, config.colour_jitter, generator)
        if name == IMAGE
        else _drop_measurements(
            _add_noise(x, config.measurement_noise_m, generator), config.measurement_dropout, generator
        )
        for name, x in batch.items()
    }


def drop_modalities(present: Mapping[str, Tensor], probability: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Absence drawn per sample (VMLoc Eq. 18): with ``probability`` one modality is kept, else all.

    A sample never loses its last modality: one that lacks the modality chosen to stay is left as it was.
    """
    names = list(present)
    matrix = torch.stack([present[name] for name in names])  # (M, B)
    count = matrix.shape[1]
    kept = torch.randint(len(names), (count,), generator=generator).to(matrix.device)
    single = (torch.rand(count, generator=generator) < probability).to(matrix.device)
    single &= matrix.gather(0, kept.unsqueeze(0)).squeeze(0)
    only_kept = kept.unsqueeze(0) == torch.arange(len(names), device=matrix.device).unsqueeze(1)
    matrix = torch.where(single, only_kept, matrix)
    return dict(zip(names, matrix, strict=True))


def zero_dropped(
    batch: Mapping[str, Tensor], present: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Prepared tensors that are zero where a sample was ``present`` and is no longer ``kept``."""
    return {name: x * (kept[name] | ~present[name]).view(-1, 1, 1, 1) for name, x in batch.items()}


def _jitter_colour(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if strength == 0:
        return image

    def factor(channels: int, width: float) -> Tensor:
        draw = torch.rand(len(image), channels, 1, 1, generator=generator)
        return (1 + width * (2 * draw - 1)).to(image.device)

    x = image.float() * (factor(1, strength) * factor(3, strength / 4))
    x = torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, factor(1, strength))  # contrast
    x = torch.lerp(x.mean(dim=1, keepdim=True), x, factor(1, strength))  # saturation
    return x.clamp_(0, 255)


def _drop_measurements(x: Tensor, most: float, generator: torch.Generator) -> Tensor:
    if most == 0:
        return x
    share = most * torch.rand(len(x), 1, 1, 1, generator=generator)
    keep = torch.rand(len(x), 1, *x.shape[2:], generator=generator) >= share
    return x * keep.to(x.device)


def _add_noise(x: Tensor, deviation_m: float, generator: torch.Generator) -> Tensor:
    """On the first channel, depth or range, where the last says that there is a measurement."""
    if deviation_m == 0:
        return x
    noise = deviation_m * torch.randn(len(x), 1, *x.shape[2:], generator=generator).to(x.device)
    distance, others = x[:, :1], x[:, 1:]
    noisy = (distance + noise).clamp(min=0) * x[:, -1:]
    if x.shape[1] > 2:  # of a range image: the point stays on its beam, so its height changes with the range
        share = noisy / distance.clamp(min=torch.finfo(x.dtype).tiny)
        others = torch.cat([x[:, HEIGHT : HEIGHT + 1] * share, x[:, HEIGHT + 1 :]], dim=1)
    return torch.cat([noisy, others], dim=1)
