# SPDX-License-Identifier: Apache-2.0
"""Augmentation of prepared batches, on the device that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.core.projection import HEIGHT


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Strength of the augmentation.

    Attributes:
        colour_jitter: brightness, contrast and saturation vary by factors within ``1 +- colour_jitter``, each
            colour channel's gain by a quarter of that.
        measurement_dropout: share of depth and lidar cells that lose their measurement, drawn per sample from 0 to
            this.
        modality_dropout: probability that a sample keeps one modality only, drawn evenly. 2/3 gives each set of two
            sensors the same share; VMLoc Eq. 18 has 2/5. Objectives may take its expectation instead of drawing it:
            :mod:`training.objectives.sensor_sets`.
        measurement_noise_m: standard deviation of noise added to measured depths and, along the beam, ranges, metres.
        rotation_deg: images and depth are rotated about their centre by up to this angle, in dense systems only: for
            others the true pose would have to change, too.
        zoom: images and depth are scaled by factors from ``1 / zoom`` to ``zoom``, likewise.
        dropped: ``absent`` if modality dropout removes an input, ``zeroed`` if it keeps it, but black and without
            measurements, as published code does. It needs modality dropout to be drawn.
    """

    colour_jitter: float = 0.4
    measurement_dropout: float = 0.2
    modality_dropout: float = 2 / 3
    measurement_noise_m: float = 0.0
    rotation_deg: float = 0.0
    zoom: float = 1.0
    dropped: Literal["absent", "zeroed"] = "absent"

    def __post_init__(self) -> None:
        values = (self.colour_jitter, self.measurement_dropout, self.modality_dropout)
        if not all(0 <= value < 1 for value in values):
            raise ValueError(f"augmentation strengths lie in [0, 1), got {values}")
        if self.measurement_noise_m < 0:
            raise ValueError(f"measurement_noise_m must not be negative, got {self.measurement_noise_m}")
        if not 0 <= self.rotation_deg <= 180 or self.zoom < 1:
            raise ValueError(f"rotation_deg lies in [0, 180] and zoom is at least 1, got {self}")

    @property
    def moves_pixels(self) -> bool:
        """Whether the camera matrix changes."""
        return self.rotation_deg > 0 or self.zoom > 1


def augment(batch: Mapping[str, Tensor], config: AugmentConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Jitter the colours of images; add noise to, and drop, measurements of depth and lidar.

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


def move_pixels(
    batch: Mapping[str, Tensor], intrinsics: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """Rotate and scale the camera's images about their centre, at random for each sample.

    Args:
        batch: prepared tensors ``(B, C, H, W)``; those in the camera's view (image, depth, projected lidar) have one
            size.
        intrinsics: ``(B, 3, 3)``.

    Returns:
        The moved batch, the camera matrices ``(B, 3, 3)`` that fit it, and which pixels ``(B, H, W)`` show a part of
        the original image (the others repeat its border); None where nothing was moved.

    Raises:
        DataError: sizes differ.
    """
    in_camera = [name for name in (IMAGE, DEPTH) if name in batch]
    in_camera += [LIDAR] if LIDAR in batch and batch[LIDAR].shape[1] == 2 else []
    if not (config.moves_pixels and in_camera):
        return dict(batch), intrinsics, None
    height, width = batch[in_camera[0]].shape[-2:]
    if any(batch[name].shape[-2:] != (height, width) for name in in_camera):
        sizes = ", ".join(f"{name} {'x'.join(map(str, batch[name].shape[-2:]))}" for name in in_camera)
        raise DataError(f"images differ in size after scaling ({sizes}); set augment.rotation_deg 0 and augment.zoom 1")
    warp, grid = _random_warps(len(intrinsics), (height, width), config, generator, intrinsics.device)
    moved = dict(batch)
    for name in in_camera:
        # Nearest for measurements: a mean across an edge lies on no surface.
        options = ("bilinear", "border") if name == IMAGE else ("nearest", "zeros")
        moved[name] = torch.nn.functional.grid_sample(batch[name].float(), grid, *options, align_corners=False)
    return moved, warp @ intrinsics, (grid.abs() <= 1).all(dim=-1)


def _random_warps(
    count: int, size: tuple[int, int], config: AugmentConfig, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Similarity transforms about the centre of images of a size (H, W).

    Returns:
        Pixel transforms ``(B, 3, 3)``, new from old, and for each new pixel its place in the old image,
        ``(B, H, W, 2)`` as :func:`torch.nn.functional.grid_sample` takes it.
    """
    height, width = size
    draws = 2 * torch.rand(2, count, generator=generator).to(device) - 1
    angle, scale = math.radians(config.rotation_deg) * draws[0], torch.exp(math.log(config.zoom) * draws[1])
    cosine, sine, zero = scale * torch.cos(angle), scale * torch.sin(angle), torch.zeros_like(scale)
    linear = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=device)
    offset = centre - linear @ centre
    last = torch.stack([zero, zero, torch.ones_like(zero)], 1).unsqueeze(1)
    warp = torch.cat([torch.cat([linear, offset.unsqueeze(2)], dim=2), last], dim=1)
    v, u = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    pixels = torch.stack([u, v], dim=-1).float() - offset[:, None, None]
    old = pixels.flatten(1, 2) @ torch.linalg.inv(linear).mT
    grid = (2 * old + 1) / torch.tensor([width, height], device=device) - 1
    return warp, grid.unflatten(1, (height, width))


def drop_modalities(present: Mapping[str, Tensor], probability: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw modality dropout per sample (VMLoc Eq. 18): with ``probability`` one modality is kept, else all.

    A sample never loses its last modality: one that lacks the modality drawn keeps all that it has.
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
    """Add noise to the first channel (depth or range) where the last one (validity) marks a measurement."""
    if deviation_m == 0:
        return x
    noise = deviation_m * torch.randn(len(x), 1, *x.shape[2:], generator=generator).to(x.device)
    distance, others = x[:, :1], x[:, 1:]
    noisy = (distance + noise).clamp(min=0) * x[:, -1:]
    if x.shape[1] > 2:  # of a range image: the point stays on its beam, so its height changes with the range
        share = noisy / distance.clamp(min=torch.finfo(x.dtype).tiny)
        others = torch.cat([x[:, HEIGHT : HEIGHT + 1] * share, x[:, HEIGHT + 1 :]], dim=1)
    return torch.cat([noisy, others], dim=1)
