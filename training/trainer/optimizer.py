# SPDX-License-Identifier: Apache-2.0
"""Adam with mixed precision, gradient clipping, learning rate schedule and averaged weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.config import OptimizerConfig
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.models import PoseModel

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def arithmetic(deterministic: bool) -> Iterator[None]:
    """Set PyTorch's switches for deterministic or for fast arithmetic, and restore them on exit."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def clip_gradients(model: PoseModel, config: OptimizerConfig) -> None:
    """Clip the gradients as ``gradient_norm`` and ``clip`` say."""
    parts = [list(part.parameters()) for part in model.parts()] if config.clip == "parts" else []
    own = {parameter for part in parts for parameter in part}
    for group in (*parts, [parameter for parameter in model.parameters() if parameter not in own]):
        nn.utils.clip_grad_norm_(group, config.gradient_norm)


class Optimizer:
    """Adam on the parameters of a model and its objective.

    Args:
        steps: steps of the whole training, for the schedule.

    Raises:
        ConfigError: the precision does not fit the device.
    """

    def __init__(
        self, model: PoseModel, objective: nn.Module, config: OptimizerConfig, steps: int, device: torch.device
    ) -> None:
        if config.precision == "fp16" and device.type != "cuda":
            raise ConfigError("optimizer.precision fp16 needs a GPU; use bf16 or fp32")
        self._model, self._config, self._steps, self._device = model, config, steps, device
        self._optimizer = torch.optim.Adam(
            [
                {"params": model.parameters(), "weight_decay": config.weight_decay},
                # Decay would pull the balance weights towards zero, which has no meaning for them.
                {"params": objective.parameters(), "weight_decay": 0.0, "factor": config.balance_rate},
            ],
            lr=config.learning_rate,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._averaged = AveragedModel(model) if config.ema_decay else None

    @property
    def best_model(self) -> nn.Module:
        """The model to validate and save: with averaged weights where ``ema_decay`` is set, else the model itself."""
        return self._model if self._averaged is None else self._averaged.module

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of the forward pass, in the configured precision."""
        half = _HALF.get(self._config.precision)
        return torch.autocast(self._device.type, dtype=half, enabled=half is not None)

    def rate(self, number: int) -> float:
        """Learning rate of step ``number``, counted from 0."""
        config = self._config
        rate = config.learning_rate * min(1.0, (number + 1) / max(1, config.warmup_steps))
        if config.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * number / self._steps))
        return rate

    def step(self, loss: Tensor, number: int) -> None:
        """Take step ``number``, counted from 0, along the gradient of the loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(number) * group.get("factor", 1.0)  # those of earlier versions have none
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        clip_gradients(self._model, self._config)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._averaged is not None:
            # A smaller decay in the first steps, so that the initial weights are soon forgotten.
            decay = min(self._config.ema_decay, (1 + number) / (10 + number))
            self._averaged.multi_avg_fn = get_ema_multi_avg_fn(decay)
            self._averaged.update_parameters(self._model)

    def state_dict(self) -> dict[str, Any]:
        averaged = None if self._averaged is None else self._averaged.state_dict()
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict(), "averaged": averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._averaged is not None:
            self._averaged.load_state_dict(state["averaged"])
