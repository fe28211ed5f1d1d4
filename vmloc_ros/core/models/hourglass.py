# SPDX-License-Identifier: Apache-2.0
"""Hourglass-Pose: encoder, decoder with skip connections, pose regressor (Melekhov et al. 2017)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vmloc_ros.core.models.baselines import PoseNet
from vmloc_ros.core.models.encoder import make_trunk

_UP_CONVOLUTIONS = 3  # from 1/32 of the image's size, where most encoders end, to 1/4 of it


class Hourglass(PoseNet):
    """PoseNet's pooling and heads on the decoder's feature map, which has finer detail than the encoder's.

    Skip connections are added ("HourglassSum-Pose", the better of the paper's two variants). The paper flattens a map
    of fixed size; here a map with as many channels as the encoder's is averaged, so that images may have any size.
    """

    def build_trunk(self, backbone: str, in_channels: int, pretrained: bool | str) -> tuple[nn.Module, int]:
        trunk = EncoderDecoder(backbone, in_channels, pretrained)
        return trunk, trunk.out_channels


class EncoderDecoder(nn.Module):
    """Any trunk of :func:`vmloc_ros.core.models.encoder.make_trunk`, then three up-convolutions.

    The output of each up-convolution is added to the encoder's last map of that resolution.

    Attributes:
        out_channels: of the output.
    """

    def __init__(self, backbone: str, in_channels: int, pretrained: bool | str = False) -> None:
        super().__init__()
        self.encoder, width = make_trunk(backbone, in_channels, pretrained)
        skips = _last_of_each_resolution(self.encoder, in_channels)[-_UP_CONVOLUTIONS:][::-1]  # coarse to fine
        self._skips = [step for step, _ in skips]
        widths = [width, *(channels for _, channels in skips)]
        self.decoder = nn.ModuleList(_UpConvolution(a, b) for a, b in itertools.pairwise(widths))
        self.convolution = nn.Sequential(
            nn.Conv2d(widths[-1], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """From ``(B, C, H, W)`` to ``(B, out_channels, h, w)``; for most encoders ``h = H / 4``, ``w = W / 4``."""
        maps = {}
        for step, module in enumerate(_steps(self.encoder)):
            x = module(x)
            if step in self._skips:
                maps[step] = x
        for step, up in zip(self._skips, self.decoder, strict=True):
            x = up(x, maps[step])
        return self.convolution(x)


class _UpConvolution(nn.Module):
    """Transposed convolution to twice the size, then the sum with the skip connection."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        if x.shape[2:] != skip.shape[2:]:  # an odd size was rounded on the way down
            x = nn.functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
        return x + skip


def _steps(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a trunk runs in sequence, with nested ``nn.Sequential`` flattened."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for child in module:
            yield from _steps(child)
    else:
        yield module


@torch.no_grad()
def _last_of_each_resolution(encoder: nn.Module, in_channels: int) -> list[tuple[int, int]]:
    """Index among :func:`_steps` and channels of the last map of each resolution but the coarsest, fine to coarse."""
    encoder.eval()
    x = torch.zeros(1, in_channels, 224, 224)
    shapes = []
    for module in _steps(encoder):
        x = module(x)
        shapes.append(x.shape)
    encoder.train()
    changes = [i for i in range(len(shapes) - 1) if shapes[i][2:] != shapes[i + 1][2:]]
    return [(i, shapes[i][1]) for i in changes]
