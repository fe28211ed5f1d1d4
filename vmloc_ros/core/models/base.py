# SPDX-License-Identifier: Apache-2.0
"""Base classes of the localization systems."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models.input_output import Array, ModelInput, Posterior, Prediction
from vmloc_ros.core.models.rotation import pose_vectors
from vmloc_ros.core.pose_codec import PoseCodec


class PoseModel(nn.Module, ABC):
    """A system that estimates poses from sensor frames: the interface for training, checkpoint, localizer and node.

    How a system finds the pose is its own matter: ``nearest`` retrieves it, ``vmloc_dense`` solves for it from
    ``batch.measured`` and ``batch.intrinsics``.

    Attributes:
        modalities: input modalities, in order; any one of them is sufficient for a pose.
        clip_length: frames of a training clip; 1 for systems of single frames.
        clip_spacing: step from one frame of a clip to the next, in frames of the recording.
        needs_geometry: whether it needs ``measured``, ``intrinsics`` and ``twists`` of :class:`ModelInput`, and
            :meth:`set_mounts`.
        looks_back: whether a frame's pose depends on the frames before it.
    """

    clip_length: int = 1
    clip_spacing: int = 1
    needs_geometry: ClassVar[bool] = False
    looks_back: ClassVar[bool] = False

    def __init__(self, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.modalities = modalities

    def parts(self) -> list[nn.Module]:
        """Modules whose gradients training clips each by itself; none for systems that are clipped as a whole.

        A sensor that is harder to learn from has the larger gradients. Clipped as one vector, they would set the length
        of the other sensors' steps, too.
        """
        return []

    def set_mounts(self, mounts: Mapping[str, Pose]) -> None:
        """Set the sensors' mounts before training; systems that need them store them in their state dict.

        Args:
            mounts: ``body_from_sensor`` of each modality whose mount is known: of the camera's optical frame for image
                and depth, of the clouds' frame for lidar.

        Raises:
            ModelError: a mount that the system needs is missing.
        """

    def set_usual_twist(self, twist: Tensor, deviation: Tensor) -> None:
        """Set the body's usual velocity before training; scans are deskewed with it where the velocity is unknown.

        Args:
            twist: ``(6,)`` mean velocity of the body in its own axes, m/s and rad/s.
            deviation: ``(6,)`` its standard deviation.
        """

    @abstractmethod
    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        """Poses of single frames, deterministic in evaluation mode.

        Args:
            codec: the map's origin, scale and reference rotation, fitted to the training poses.
            samples: number of posterior samples for the covariance; systems without a posterior return none.

        Raises:
            ModelError: a frame has no modality, or the estimate is not finite.
        """

    def locate_frames(
        self, batches: Iterable[ModelInput], runs: Sequence[int], codec: PoseCodec, samples: int = 0
    ) -> Prediction:
        """Poses of recorded frames, in order of time.

        Args:
            runs: lengths of the uninterrupted runs of frames; their sum is the number of frames.
            codec: see :meth:`locate`.
            samples: see :meth:`locate`.

        Raises:
            ModelError: as :meth:`locate`.
        """
        return Prediction.joined([self.locate(batch, codec, samples) for batch in batches])

    def modality_features(self, batch: ModelInput) -> Mapping[str, Tensor]:
        """:attr:`Prediction.features` without the poses; empty for systems without features.

        Raises:
            ModelError: a frame has no modality.
        """
        return {}


class RegressionModel(PoseModel):
    """A system whose network outputs normalised position and rotation, ``3 + R`` numbers.

    R is 3 for a log-quaternion; for others see :mod:`vmloc_ros.core.models.rotation`.
    """

    @abstractmethod
    def forward(self, batch: ModelInput) -> Tensor:
        """Outputs ``(B, 3 + R)``: normalised position and rotation."""

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        return decode_outputs(self(batch).unsqueeze(0), codec)


class FusingModel(RegressionModel):
    """A system whose sensors meet only after their encoders.

    Encoders run once; what follows them gives the outputs for any of the sensors, as modality dropout in expectation
    (VMLoc Eq. 18) needs them.

    Attributes:
        encoders: by modality.
    """

    encoders: nn.ModuleDict

    def parts(self) -> list[nn.Module]:
        return list(self.encoders.values())

    @abstractmethod
    def encode_each(self, batch: ModelInput) -> Mapping[str, Tensor]:
        """Features of each modality, ``(B, F)``. Raises ModelError where a frame has no modality."""

    @abstractmethod
    def fuse(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Outputs ``(N, 3 + R)`` from the features ``(N, F)`` of the modalities that are ``present``, ``(N,)`` bool."""

    def forward(self, batch: ModelInput) -> Tensor:
        return self.fuse(self.encode_each(batch), batch.present)


class VariationalModel(RegressionModel):
    """A system with a Gaussian latent between its encoders and its regressor.

    Attributes:
        latent_dim: D.
        encoders: by modality.
    """

    latent_dim: int
    encoders: nn.ModuleDict

    def parts(self) -> list[nn.Module]:
        return list(self.encoders.values())

    @abstractmethod
    def encode(self, batch: ModelInput) -> Posterior:
        """Posterior of every frame. Raises ModelError where a frame has no modality."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Outputs ``(..., 3 + R)`` of latents ``(..., D)``."""

    def forward(self, batch: ModelInput) -> Tensor:
        """Outputs ``(B, 3 + R)`` at the posterior mean."""
        return self.decode(self.encode(batch).joint.mean)

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        """Poses at the posterior mean, and decoded posterior samples."""
        posterior = self.encode(batch)
        joint = posterior.joint
        # The same noise for every frame and batch: the same frame always gives the same covariance.
        noise = torch.randn((samples, self.latent_dim), generator=torch.Generator().manual_seed(0))
        drawn = joint.mean + torch.exp(0.5 * joint.log_variance) * noise.to(joint.mean).unsqueeze(1)
        prediction = decode_outputs(self.decode(torch.cat([joint.mean.unsqueeze(0), drawn])), codec, posterior)
        return replace(prediction, features=_means(posterior))

    def modality_features(self, batch: ModelInput) -> Mapping[str, Tensor]:
        return _means(self.encode(batch))


def _means(posterior: Posterior) -> dict[str, Tensor]:
    return {name: expert.mean for name, expert in posterior.experts.items()}


class ClipModel(RegressionModel):
    """A system whose estimate for a frame depends on its neighbours in time.

    :meth:`frame_features` is separate from :meth:`decode_clip`, so that the node computes the features of each frame
    only once.
    """

    looks_back: ClassVar[bool] = True

    @abstractmethod
    def frame_features(self, batch: ModelInput) -> Tensor:
        """Features ``(B, F)`` of single frames."""

    @abstractmethod
    def decode_clip(self, features: Tensor) -> Tensor:
        """Outputs ``(B, T, 3 + R)`` of clips ``(B, T, F)``, oldest frame first."""

    def decode_window(self, features: Tensor) -> Tensor:
        """Outputs ``(T, 3 + R)`` of the newest frames ``(T, F)``, T from 1 to ``clip_length``.

        Fewer frames than a clip has are padded by repetition of the oldest, as in training.
        """
        missing = self.clip_length - len(features)
        clip = torch.cat([features[:1].expand(missing, -1), features])
        return self.decode_clip(clip.unsqueeze(0))[0, missing:]

    def forward(self, batch: ModelInput) -> Tensor:
        """Outputs ``(B, 3 + R)`` of frames without neighbours."""
        features = self.frame_features(batch).unsqueeze(1)
        return self.decode_clip(features.expand(-1, self.clip_length, -1))[:, -1]

    def locate_frames(
        self, batches: Iterable[ModelInput], runs: Sequence[int], codec: PoseCodec, samples: int = 0
    ) -> Prediction:
        """Each pose from the newest ``clip_length`` frames of its run, as on the robot."""
        features = torch.cat([self.frame_features(batch) for batch in batches])
        outputs = [
            self.decode_window(run[max(0, end - self.clip_length) : end])[-1]
            for run in torch.split(features, list(runs))
            for end in range(1, len(run) + 1)
        ]
        return decode_outputs(torch.stack(outputs).unsqueeze(0), codec)


class MemoryModel(PoseModel):
    """A system without gradient training, which stores descriptors and poses of its training frames."""

    @abstractmethod
    def describe(self, batch: ModelInput) -> Tensor:
        """Descriptors ``(B, F)`` of single frames."""

    @abstractmethod
    def store_frames(self, descriptors: Tensor, positions_m: Array, quaternions_wxyz: Array) -> None:
        """Store descriptors ``(N, F)`` and poses ``(N, 3)``, ``(N, 4)`` in the state dict, in place of earlier ones."""


def require_modality(batch: ModelInput, modalities: tuple[str, ...]) -> None:
    """Raise ModelError where a frame has none of the modalities."""
    present = torch.stack([batch.present[name] for name in modalities]).any(dim=0)
    if not bool(present.all()):
        missing = torch.nonzero(~present).flatten().tolist()
        raise ModelError(f"no modality is present in sample {missing} of the batch; a pose needs at least one")


def decode_outputs(outputs: Tensor, codec: PoseCodec, posterior: Posterior | None = None) -> Prediction:
    """Prediction from a network's outputs ``(1 + K, B, 3 + R)``: the estimates, then K posterior samples of each.

    Raises:
        ModelError: a value is not finite.
    """
    values = pose_vectors(outputs.double()).cpu().numpy()
    if not np.isfinite(values).all():
        raise ModelError("the network's output is not finite")
    positions, quaternions = codec.decode(values)
    return Prediction(positions[0], quaternions[0], positions[1:], quaternions[1:], posterior=posterior)
