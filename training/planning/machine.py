# SPDX-License-Identifier: Apache-2.0
"""What this machine offers: ImageNet weights of a backbone, fast arithmetic in half precision."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision

logger = logging.getLogger(__name__)
_TIMEOUT_S = 20.0
_SHAPE = (256, 256)  # of the matrices that are multiplied for a comparison


def has_weights(backbone: str) -> bool:
    """Whether torchvision's ImageNet weights are in its cache, or can be downloaded into it now."""
    weights = torchvision.models.get_model_weights(backbone).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if file.is_file():
        return True
    try:
        with _timeout():
            weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a bad hash is a RuntimeError
        logger.info("ImageNet weights of %s cannot be downloaded from %s: %s", backbone, weights.url, error)
        return False
    return True


@contextmanager
def _timeout() -> Iterator[None]:
    """Give up a connection that is silent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def is_bf16_fast() -> bool:
    """Whether the CPU multiplies matrices of bf16 at least as fast as those of single precision."""
    return _multiply_s(torch.bfloat16) <= _multiply_s(torch.float32)


def _multiply_s(kind: torch.dtype) -> float:
    """Least seconds of three products, after a first one."""
    x, weights = torch.ones(_SHAPE, dtype=kind), torch.ones(_SHAPE[1], _SHAPE[1], dtype=kind)
    found = []
    for _ in range(4):
        started = time.perf_counter()
        x @ weights
        found.append(time.perf_counter() - started)
    return min(found[1:])
