# SPDX-License-Identifier: Apache-2.0
"""Frame in, pose with covariance out: the path that the robot and every reported number share."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import DEPTH, IMAGE, Estimate, Frame, PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ModelInput, VMLoc
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.uncertainty import residual_covariance, sample_covariance

logger = logging.getLogger(__name__)


class Localizer:
    """A trained model ready to answer.

    Attributes:
        header: what the checkpoint says of itself.
        modalities: names of the modalities that the model takes; any one of them is enough.
        map_frame: frame of the poses.
        body_frame: the frame whose pose is estimated.
    """

    def __init__(self, header: CheckpointHeader, model: VMLoc, device: torch.device | str = "cpu") -> None:
        self.header = header
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.modalities = header.preprocess.modalities
        self.map_frame, self.body_frame = header.map_frame, header.body_frame
        self._preprocessor = Preprocessor(header.preprocess)
        # Drawn once: the same frame always gives the same covariance.
        noise = torch.Generator().manual_seed(0)
        shape = (header.uncertainty.samples, header.model.latent_dim)
        self._noise = torch.randn(shape, generator=noise).to(self.device)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Localizer:
        """Load a checkpoint onto ``cpu``, ``cuda``, ``cuda:N`` or, with ``auto``, a GPU where there is one.

        Raises:
            CheckpointError: see :func:`vmloc_ros.core.checkpoint.load_checkpoint`.
            ModelError: the device does not exist.
        """
        header, model = load_checkpoint(Path(path))
        return cls(header, model, select_device(device))

    @torch.inference_mode()
    def localize(self, frame: Frame) -> Estimate:
        """Pose of the frame at the posterior mean; covariance from posterior samples and held-out residuals.

        Raises:
            ModelError: the frame has none of the model's modalities, or the network's output is not finite.
        """
        batch = self._preprocess(frame)
        posterior = self.model.encode(batch).joint
        samples = posterior.mean + torch.exp(0.5 * posterior.log_variance) * self._noise
        vectors = self.model.decode(torch.cat([posterior.mean, samples])).double().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ModelError(f"the network's output for the frame at {frame.stamp_ns} ns is not finite")
        positions, quaternions = self.header.pose_codec.decode(vectors)
        pose = Pose(positions[0], quaternions[0])
        covariance = sample_covariance(pose, positions[1:], quaternions[1:])
        covariance += residual_covariance(pose, self.header.uncertainty.residual_std)
        present = tuple(name for name in self.modalities if bool(batch.present[name]))
        return Estimate(frame.stamp_ns, pose, covariance, present)

    def warm_up(self) -> None:
        """Answer one synthetic frame, so that the first real one does not pay for lazy initialisation."""
        height, width = self.header.preprocess.crop or (480, 640)  # the crop's own shape surely contains it
        cloud = PointCloud(np.full((1000, 3), 5.0, np.float32), np.ones(1000, np.float32))
        camera = PinholeCamera(width, height, float(width), float(width), width / 2, height / 2)
        frame = Frame(
            0,
            np.zeros((height, width, 3), np.uint8) if IMAGE in self.modalities else None,
            np.ones((height, width), np.float32) if DEPTH in self.modalities else None,
            cloud,
            camera,
            Pose.identity(),
        )
        self.localize(frame)

    def _preprocess(self, frame: Frame) -> ModelInput:
        prepared = {name: x.unsqueeze(0).to(self.device) for name, x in self._preprocessor.prepare(frame).items()}
        tensors = self._preprocessor.normalise(prepared)
        absent = torch.zeros(1, device=self.device)
        return ModelInput(
            {name: tensors.get(name, absent) for name in self.modalities},
            {name: torch.tensor([name in tensors], device=self.device) for name in self.modalities},
        )


def select_device(device: str) -> torch.device:
    """The torch device that ``device`` names; ``auto`` is a working GPU or else the CPU.

    Raises:
        ModelError: the device is unknown or does not work.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        try:
            return torch.zeros(1, device="cuda").device
        except RuntimeError as error:
            logger.warning("the GPU does not work (%s); falling back to the CPU", error)
            return torch.device("cpu")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} does not work ({reason}); use cpu, cuda, cuda:N or auto") from error
