# SPDX-License-Identifier: Apache-2.0
"""The model as the node runs it: loaded, warmed up, traced, on a CUDA stream of its own; no ROS."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import Estimate, Frame
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import ModelInput
from vmloc_ros.core.tracing import trace_networks


class ServedModel:
    """A localizer in service, fed frame by frame.

    Args:
        lookahead: number of later frames that an estimate waits for, see :meth:`Localizer.stream`.

    Attributes:
        checkpoint: path that the localizer was loaded from.

    Raises:
        ConfigError: ``lookahead`` is out of the model's range.
    """

    def __init__(self, checkpoint: str, localizer: Localizer, lookahead: int) -> None:
        self.checkpoint, self.localizer = checkpoint, localizer
        self._lookahead = lookahead
        # Does not wait for other work on the default stream. None on the CPU.
        self._cuda_stream = torch.cuda.Stream(localizer.device) if localizer.device.type == "cuda" else None
        self.reset()

    def reset(self) -> None:
        """Forget the frames so far, for systems that read clips."""
        self._stream = self.localizer.stream(self._lookahead)

    @torch.inference_mode()
    def prepare(self, frame: Frame) -> ModelInput:
        """Make the input of :meth:`feed`, also while another thread is in it. Raises ModelError: nothing to prepare."""
        with self._on_cuda_stream():
            return self.localizer.preprocess(frame)

    def feed(self, frame: Frame, batch: ModelInput) -> list[Estimate]:
        """See :meth:`vmloc_ros.core.stream.Stream.feed`."""
        with self._on_cuda_stream():
            return self._stream.feed(frame, batch)

    def warm_up(self) -> None:
        """See :meth:`vmloc_ros.core.localizer.Localizer.warm_up`."""
        if self._cuda_stream is not None:
            torch.cuda.synchronize(self.localizer.device)  # the weights were copied on the default stream
        with self._on_cuda_stream():
            self.localizer.warm_up()

    def trace(self) -> bool:
        """Trace the networks on the CPU, so that other Python threads do not delay them; False if that failed."""
        if self._cuda_stream is not None:
            return True
        return bool(trace_networks(self.localizer.model, self.localizer.warm_up))

    def _on_cuda_stream(self) -> AbstractContextManager[object]:
        # torch.cuda.stream(None) does nothing either, but calls the driver first and fails where that is broken.
        return nullcontext() if self._cuda_stream is None else torch.cuda.stream(self._cuda_stream)


def load_model(checkpoint: str, device: str, lookahead: int, warn: Callable[[str], object]) -> ServedModel:
    """Load a checkpoint and localize a first, synthetic frame.

    Args:
        device: see :meth:`Localizer.load`; with ``auto`` the CPU replaces a GPU that fails at the first frame, too.
        warn: called with a text when that happens, or when the networks cannot be traced.

    Raises:
        CheckpointError: see :func:`vmloc_ros.core.checkpoint.load_checkpoint`.
        ModelError: the device does not exist or fails.
        ConfigError: ``lookahead`` is out of the model's range.
    """
    chosen = device
    if device == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = ServedModel(checkpoint, Localizer.load(Path(checkpoint).expanduser(), chosen), lookahead)
        model.warm_up()
    except (RuntimeError, ModelError) as error:
        # RuntimeError is what torch raises for CUDA: out of memory, no kernel for this GPU, a broken driver.
        if not chosen.startswith("cuda") or (device != "auto" and isinstance(error, ModelError)):
            raise
        reason = str(error).splitlines()[0]
        if device != "auto":
            raise ModelError(f"the model does not run on {device} ({reason}); free the GPU, or use cpu") from error
        warn(f"the model does not run on {chosen} ({reason}); falling back to the CPU")
    else:
        if not model.trace():
            warn(
                "this system's networks cannot be traced: at high frame rates, receiving messages slows inference down"
            )
        return model
    return load_model(checkpoint, "cpu", lookahead, warn)  # outside of "except", which would keep the GPU's tensors


def release_gpu_memory() -> None:
    """Return the GPU memory that torch caches of deleted models to other processes."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
