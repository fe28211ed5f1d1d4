# SPDX-License-Identifier: Apache-2.0
"""Modality encoders ``q(z | x_m)``: a torchvision trunk, global average pooling and two linear heads."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from vmloc_ros.core.errors import ModelError

_SAMPLE_SIZE = 224  # pixels a side of the image that a trunk's output shapes are measured with


class Encoder(nn.Module):
    """Diagonal Gaussian posterior of one modality (VMLoc, "Feature Encoders").

    Args:
        trunk: maps ``(B, C, H, W)`` to features ``(B, F, h, w)``; see :func:`make_trunk`.
        latent_dim: D.
        log_variance_range: bounds of the log-variance.
        log_variance_start: its value for every input before training; None: the middle of the range.
    """

    def __init__(
        self,
        trunk: nn.Module,
        feature_channels: int,
        latent_dim: int,
        log_variance_range: tuple[float, float],
        log_variance_start: float | None = None,
    ) -> None:
        super().__init__()
        low, high = log_variance_range
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self.trunk = trunk
        self.mean = nn.Linear(feature_channels, latent_dim)
        self.log_variance = nn.Linear(feature_channels, latent_dim)
        start = self._middle if log_variance_start is None else log_variance_start
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, self._half * math.atanh((start - self._middle) / self._half))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)`` to mean and log-variance, each ``(B, D)``."""
        features = self.trunk(x).mean(dim=(2, 3))
        # tanh keeps a gradient where clamp() would have none.
        bounded = self._half * torch.tanh(self.log_variance(features) / self._half)
        return self.mean(features), self._middle + bounded


class ImagenetScale(nn.Module):
    """Rescale images from [-1, 1], the range of preprocessing, to that of torchvision's pretrained weights."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2 - self.mean) / self.std


class Pyramid(nn.Module):
    """A trunk's last feature map at each stride from ``stride`` on, resampled to the finest and concatenated.

    Args:
        trunk: see :func:`make_trunk`; its children are run in sequence.
        in_channels: of the images.
        stride: pixels per cell, a power of two that the trunk has a feature map of.

    Attributes:
        channels: of the concatenated maps.
        context_channels: of the coarsest map.

    Raises:
        ModelError: the trunk has no feature map of this stride.
    """

    def __init__(self, trunk: nn.Module, in_channels: int, stride: int) -> None:
        super().__init__()
        layers = _unfolded(trunk, torch.zeros(1, in_channels, _SAMPLE_SIZE, _SAMPLE_SIZE))
        if _is_expansion(layers[-1]):  # a 1 x 1 convolution for the classifier: it adds channels but no information
            layers.pop()
        self.layers = nn.ModuleList(layers)
        self.stride = stride
        shapes = self._shapes(in_channels)
        # 0 stands for "no stride": where sizes do not divide (SqueezeNet has no padding), cells are off their pixels.
        strides = [0 if _SAMPLE_SIZE % shape[2] else _SAMPLE_SIZE // shape[2] for shape in shapes]
        self._taps = [
            place
            for place, own in enumerate(strides)
            if own >= stride and (place + 1 == len(strides) or strides[place + 1] != own)
        ]
        if stride not in (strides[place] for place in self._taps):
            known = ", ".join(str(own) for own in sorted(set(strides) - {0})) or "none"
            raise ModelError(
                f"the backbone has feature maps of strides {known}, not of {stride}: change the cells' stride"
            )
        self.channels = sum(shapes[place][1] for place in self._taps)
        self.context_channels = shapes[-1][1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and context of images ``(B, C, H, W)``.

        Returns:
            Features ``(B, channels, H / stride, W / stride)``, sizes rounded up, and the mean of the coarsest map
            ``(B, context_channels)``.
        """
        maps = []
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if place in self._taps:
                maps.append(x)
        size = maps[0].shape[-2:]
        resampled = [
            y if y.shape[-2:] == size else nn.functional.interpolate(y, size, mode="bilinear", align_corners=False)
            for y in maps
        ]
        return torch.cat(resampled, dim=1), maps[-1].mean(dim=(2, 3))

    @torch.no_grad()
    def _shapes(self, in_channels: int) -> list[tuple[int, ...]]:
        """Output shape of each layer."""
        self.eval()
        x, shapes = torch.zeros(1, in_channels, _SAMPLE_SIZE, _SAMPLE_SIZE), []
        for layer in self.layers:
            x = layer(x)
            shapes.append(tuple(x.shape))
        self.train()
        return shapes


@torch.no_grad()
def _unfolded(trunk: nn.Module, x: Tensor) -> list[nn.Module]:
    """A trunk's children; those that span several strides (in DenseNet, RegNet) are replaced by their own children."""
    trunk.eval()
    layers = []
    for layer in trunk.children():
        y = layer(x)
        if type(layer) is nn.Sequential and x.shape[-1] > 3 * y.shape[-1]:
            layers += _unfolded(layer, x)
        else:
            layers.append(layer)
        x = y
    trunk.train()
    return layers


def _is_expansion(layer: nn.Module) -> bool:
    convolutions = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
    return len(convolutions) == 1 and convolutions[0].kernel_size == (1, 1)


def run_where_present(encode: Callable[[Tensor], Tensor], inputs: Tensor, present: Tensor, width: int) -> Tensor:
    """Apply ``encode`` to the samples that are present; zeros for the others.

    An absent modality then takes no time and does not change batch statistics.

    Args:
        encode: ``(N, C, H, W)`` to ``(N, width)``.
        inputs: ``(B, C, H, W)``; arbitrary, of any shape, where no sample is present.
        present: ``(B,)`` bool.
    """
    if bool(present.all()):
        return encode(inputs)
    encoded = inputs.new_zeros(len(present), width)
    if bool(present.any()):
        rows = torch.nonzero(present).flatten()
        values = encode(inputs[rows])
        encoded = encoded.to(values.dtype).index_copy(0, rows, values)
    return encoded


def make_trunk(backbone: str, in_channels: int, pretrained: bool | str = False) -> tuple[nn.Module, int]:
    """The convolutional part of a torchvision classifier, its first convolution adapted to ``in_channels``.

    Args:
        backbone: a name of ``torchvision.models.list_models(module=torchvision.models)`` such as ``resnet34``.
        in_channels: channels of the modality.
        pretrained: False (random), True (torchvision's ImageNet weights, from its cache or by download) or the
            path of a state-dict file of that classifier.

    Returns:
        The trunk and the channels of its feature map.

    Raises:
        ModelError: the name is unknown, it has no convolutional trunk, or its weights are not available.
    """
    if backbone not in torchvision.models.list_models(module=torchvision.models):
        raise ModelError(f"backbone {backbone!r} is not a torchvision classification model; try 'resnet34'")
    # GoogLeNet and Inception would otherwise warn about, and build, auxiliary classifiers that the trunk drops.
    options = {"init_weights": True, "aux_logits": True} if backbone in ("googlenet", "inception_v3") else {}
    classifier = torchvision.models.get_model(backbone, weights=None, **options)
    if pretrained:
        classifier.load_state_dict(_backbone_weights(backbone, pretrained))
    trunk = _strip_classifier(backbone, classifier)
    _adapt_first_convolution(trunk, in_channels)
    return trunk, _feature_channels(backbone, trunk, in_channels)


def _strip_classifier(backbone: str, classifier: nn.Module) -> nn.Module:
    """The layers before global pooling, for the three layouts that torchvision uses for its CNNs."""
    for attribute in ("features", "layers"):
        if isinstance(getattr(classifier, attribute, None), nn.Sequential):
            features = getattr(classifier, attribute)
            # DenseNet applies this ReLU in forward(), outside of `features`.
            return nn.Sequential(features, nn.ReLU()) if backbone.startswith("densenet") else features
    if hasattr(classifier, "fc"):
        heads = ("avgpool", "dropout", "fc", "AuxLogits", "aux1", "aux2")
        return nn.Sequential(*(child for name, child in classifier.named_children() if name not in heads))
    raise ModelError(f"backbone {backbone!r} has no convolutional feature map; use a CNN such as 'resnet34'")


def _adapt_first_convolution(trunk: nn.Module, in_channels: int) -> None:
    name, first = next((name, module) for name, module in trunk.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == in_channels:
        return
    adapted = copy.deepcopy(first)
    adapted.in_channels = in_channels
    # The mean over RGB, repeated, keeps ImageNet's edge filters; the scale keeps the size of the activations.
    mean = first.weight.detach().mean(dim=1, keepdim=True)
    weight = mean.repeat(1, in_channels, 1, 1) * (first.in_channels / in_channels)
    adapted.weight = nn.Parameter(weight)
    parent, _, leaf = name.rpartition(".")
    setattr(trunk.get_submodule(parent), leaf, adapted)


def _feature_channels(backbone: str, trunk: nn.Module, in_channels: int) -> int:
    trunk.eval()
    try:
        with torch.no_grad():
            features = trunk(torch.zeros(1, in_channels, _SAMPLE_SIZE, _SAMPLE_SIZE))
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"backbone {backbone!r} cannot serve as a trunk: {error}") from error
    trunk.train()
    if features.dim() != 4 or features.shape[1] < features.shape[3]:
        raise ModelError(f"backbone {backbone!r} gives no (B, C, h, w) feature map; use a CNN such as 'resnet34'")
    return int(features.shape[1])


def _backbone_weights(backbone: str, pretrained: bool | str) -> dict[str, Tensor]:
    if isinstance(pretrained, str):
        return _weights_from_file(backbone, Path(pretrained).expanduser())
    weights = torchvision.models.get_model_weights(backbone).DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a bad hash is a RuntimeError
        name = weights.url.rsplit("/", 1)[-1]
        raise ModelError(
            f"ImageNet weights of {backbone} could not be downloaded ({error}); fetch {weights.url} elsewhere, put "
            f"{name} into {torch.hub.get_dir()}/checkpoints or give its path, or set pretrained: false"
        ) from error


def _weights_from_file(backbone: str, path: Path) -> dict[str, Tensor]:
    wanted = torchvision.models.get_model_weights(backbone).DEFAULT.url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist; give the path of torchvision's {wanted} for {backbone}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        torchvision.models.get_model(backbone, weights=None).load_state_dict(state)
    except Exception as error:  # torch.load raises many types for a foreign file
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{path} does not hold weights of {backbone} (wanted {wanted}): {reason}") from error
    return state  # not a copy: MNASNet needs the version that is an attribute of this dictionary
