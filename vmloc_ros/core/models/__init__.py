# SPDX-License-Identifier: Apache-2.0
"""Model registry: every system by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models.vmloc import ModelConfig, ModelInput, Posterior, VMLoc

REGISTRY: dict[str, Callable[[ModelConfig, Mapping[str, int], bool | str], VMLoc]] = {"vmloc": VMLoc}


def build_model(config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> VMLoc:
    """Build the system that ``config.name`` names; touches the network only where ``pretrained`` is True.

    Raises:
        ModelError: the name, or the backbone, is unknown, or weights are not to be had.
    """
    if config.name not in REGISTRY:
        raise ModelError(f"model {config.name!r} is not in the registry; known: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[config.name](config, channels, pretrained)


__all__ = ["REGISTRY", "ModelConfig", "ModelInput", "Posterior", "VMLoc", "build_model"]
