# SPDX-License-Identifier: Apache-2.0
"""The model as the node runs it: loaded, warmed up, on a CUDA stream of its own; no ROS."""

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


class Model:
    """A localizer in service, fed frame by frame.

    Attributes:
        checkpoint: path that it was loaded from.
        localizer: what answers.

    Raises:
        ConfigError: the model cannot have this ``lookahead``.
    """

    def __init__(self, checkpoint: str, localizer: Localizer, lookahead: int) -> None:
        self.checkpoint, self.localizer = checkpoint, localizer
        self._lookahead = lookahead
        # Of its own, so that it waits for nobody else's work on the default stream. None: the CPU has none.
        self._cuda_stream = torch.cuda.Stream(localizer.device) if localizer.device.type == "cuda" else None
        self.reset()

    def reset(self) -> None:
        """Forget the frames so far, for systems that read clips."""
        self._stream = self.localizer.stream(self._lookahead)

    @torch.inference_mode()
    def prepare(self, frame: Frame) -> ModelInput:
        """What :meth:`feed` takes; for another thread, while that one works. Raises ModelError: it has no input."""
        with self._on_cuda_stream():
            return self.localizer.preprocess(frame)

    def feed(self, frame: Frame, batch: ModelInput) -> list[Estimate]:
        """See :meth:`vmloc_ros.core.localizer.Stream.feed`."""
        with self._on_cuda_stream():
            return self._stream.feed(frame, batch)

    def warm_up(self) -> None:
        """See :meth:`vmloc_ros.core.localizer.Localizer.warm_up`."""
        if self._cuda_stream is not None:
            torch.cuda.synchronize(self.localizer.device)  # the weights were copied on the default stream
        with self._on_cuda_stream():
            self.localizer.warm_up()

    def speed_up(self) -> bool:
        """Keep the node's other threads from holding up the networks, where the CPU runs them; whether that worked."""
        if self._cuda_stream is not None:
            return True
        return bool(trace_networks(self.localizer.model, self.localizer.warm_up))

    def _on_cuda_stream(self) -> AbstractContextManager[object]:
        # torch.cuda.stream(None) does nothing, too, but asks the driver first, and fails where that is broken.
        return nullcontext() if self._cuda_stream is None else torch.cuda.stream(self._cuda_stream)


def load_model(checkpoint: str, device: str, lookahead: int, warn: Callable[[str], object]) -> Model:
    """Load a checkpoint and answer a first, synthetic frame.

    Args:
        device: as :meth:`Localizer.load` has it; with ``auto`` a GPU that fails even now gives way to the CPU.
        warn: is told when that happens.

    Raises:
        CheckpointError: see :func:`vmloc_ros.core.checkpoint.load_checkpoint`.
        ModelError: the device does not exist or fails.
        ConfigError: the model cannot have this ``lookahead``.
    """
    chosen = device
    if device == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = Model(checkpoint, Localizer.load(Path(checkpoint).expanduser(), chosen), lookahead)
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
        if not model.speed_up():
            warn("this system's networks cannot be traced: with many frames a second, receiving them slows it down")
        return model
    return load_model(checkpoint, "cpu", lookahead, warn)  # outside of "except", which would keep the GPU's tensors


def release_gpu_memory() -> None:
    """Hand what torch keeps of dropped models back to the GPU's other users."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
