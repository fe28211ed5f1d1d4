# SPDX-License-Identifier: Apache-2.0
"""What every localization system is: its configuration, its input, its answer, and the classes it derives from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models.fusion import Gaussian
from vmloc_ros.core.pose_codec import PoseCodec

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What every system is built from, beside the channels that preprocessing gives.

    Each family of systems derives a configuration with its own settings from it and names it in the registry.

    Attributes:
        name: an entry of the registry; ``vmloc models`` lists it.
        backbone: torchvision classification CNN of every encoder.
    """

    name: str = "vmloc"
    backbone: str = "resnet34"


@dataclass(frozen=True, slots=True)
class LatentConfig(ModelConfig):
    """Settings of systems that join their modalities in one latent vector: ``vmloc`` and its variants.

    Attributes:
        latent_dim: D of the latent space (VMLoc: 1024).
        hidden_dim: width between the regressor's two layers.
        attention_reduction: the latent size divided by the attention's inner size.
        dropout: before the regressor, in training only.
    """

    latent_dim: int = 1024
    hidden_dim: int = 1024
    attention_reduction: int = 8
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_sizes(self, "latent_dim", "hidden_dim", "attention_reduction")


def check_sizes(config: Any, *names: str) -> None:
    """Raise ValueError unless the named settings are positive and ``dropout`` lies in [0, 1)."""
    if min(getattr(config, name) for name in names) < 1 or not 0 <= config.dropout < 1:
        raise ValueError(f"{', '.join(names)} must be positive and 0 <= dropout < 1, got {config}")


@dataclass(frozen=True, slots=True, eq=False)
class ModelInput:
    """Tensors of a batch.

    Attributes:
        tensors: per modality ``(B, C, H, W)`` float32, normalised.
        present: per modality ``(B,)`` bool; rows of ``tensors`` where it is False are ignored.
        measured: per modality the same window ``(B, C, H, W)`` as :meth:`Preprocessor.prepare` gives it, in metres and
            the sensor's units, for systems that set ``needs_geometry``; else None.
        intrinsics: ``(B, 3, 3)`` camera matrices of that window, likewise; NaN where the camera is unknown.
        twists: ``(B, 6)`` velocities of the body in its own axes, m/s and rad/s, likewise; NaN or None where unknown.
        shown: ``(B, H, W)`` bool, pixels of that window in the camera's view that show what the camera saw, not what
            augmentation filled in; None where all do.
    """

    tensors: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    measured: Mapping[str, Tensor] | None = None
    intrinsics: Tensor | None = None
    twists: Tensor | None = None
    shown: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.present.values())))

    def only(self, names: Collection[str]) -> ModelInput:
        """The same as if the sensors of all other modalities were missing."""
        return replace(self, present={name: x & (name in names) for name, x in self.present.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """``q(z | x)``: the joint ``(B, D)`` and each modality's own ``(B, D)`` (undefined where not present)."""

    joint: Gaussian
    experts: Mapping[str, Gaussian]
    present: Mapping[str, Tensor]

    def mean_std(self) -> dict[str, Tensor]:
        """Mean standard deviation ``(B,)`` over the latent of the joint and, NaN where absent, of each expert."""
        spread = {name: _mean_std(expert) for name, expert in self.experts.items()}
        absent = {name: x.masked_fill(~self.present[name], torch.nan) for name, x in spread.items()}
        return {"joint": _mean_std(self.joint), **absent}


def _mean_std(gaussian: Gaussian) -> Tensor:
    return torch.exp(0.5 * gaussian.log_variance).mean(dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Poses of a batch in the map, metric, and what is known of their spread.

    Attributes:
        positions_m: ``(B, 3)``.
        quaternions_wxyz: ``(B, 4)``.
        sample_positions_m: ``(K, B, 3)`` of K >= 0 equally likely alternatives.
        sample_quaternions_wxyz: ``(K, B, 4)``.
        covariances: ``(B, 6, 6)`` (x, y, z, rotation about the fixed map axes) where the system has its own, such as
            a solver's inverse Hessian; it takes the place of the samples' spread.
        posterior: of systems that have one.
        features: per modality ``(B, F)`` what the system saw, for a comparison with training frames; undefined where
            the modality is absent. Systems that give none have no confidence.
        outlier_scores: ``(B, C)`` the system's own evidence against its estimate, such as a solver's share of
            outliers; larger is worse.
        lost: ``(B,)`` bool, there is no answer worth the name; confidence is then zero.
    """

    positions_m: Array
    quaternions_wxyz: Array
    sample_positions_m: Array = field(default_factory=lambda: np.empty((0, 0, 3)))
    sample_quaternions_wxyz: Array = field(default_factory=lambda: np.empty((0, 0, 4)))
    covariances: Array | None = None
    posterior: Posterior | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    outlier_scores: Array | None = None
    lost: NDArray[np.bool_] | None = None

    @staticmethod
    def joined(parts: Sequence[Prediction]) -> Prediction:
        """One prediction for the frames of all parts, in order; without the posterior, which is large."""
        first = parts[0]

        def stacked(name: str, axis: int = 0) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values, axis=axis)

        return Prediction(
            stacked("positions_m"),
            stacked("quaternions_wxyz"),
            stacked("sample_positions_m", axis=1),
            stacked("sample_quaternions_wxyz", axis=1),
            stacked("covariances"),
            features={name: torch.cat([part.features[name] for part in parts]) for name in first.features},
            outlier_scores=stacked("outlier_scores"),
            lost=stacked("lost"),
        )


class PoseModel(nn.Module, ABC):
    """A system that answers sensor frames with poses. What training, checkpoint, localizer and node know of it.

    Deriving from this class alone, a system may reach its pose by any way: ``nearest`` looks it up, and
    ``vmloc_dense`` solves for it, from ``batch.measured`` and ``batch.intrinsics``.

    Attributes:
        modalities: what it takes, in order; any one of them is enough.
        clip_length: frames of a training clip; 1 where frames are seen singly.
        clip_spacing: frames from one of a clip to the next.
        needs_geometry: wants ``ModelInput.measured``, ``ModelInput.intrinsics`` and :meth:`set_mounts`.
        looks_back: a frame's pose depends on the frames before it.
    """

    clip_length: int = 1
    clip_spacing: int = 1
    needs_geometry: ClassVar[bool] = False
    looks_back: ClassVar[bool] = False

    def __init__(self, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.modalities = modalities

    def set_mounts(self, mounts: Mapping[str, Pose]) -> None:
        """Learn, before training, where the sensors are; systems that use it keep it in their state dict.

        Args:
            mounts: ``body_from_sensor`` of each modality as far as the data say it: of the camera's optical frame for
                image and depth, of the frame that clouds lie in for lidar.

        Raises:
            ModelError: a mount that the system needs is not among them.
        """

    def set_usual_twist(self, twist: Tensor, deviation: Tensor) -> None:
        """Learn, before training, how the body usually moves, to undo a scan's turn with where nothing else is known.

        Args:
            twist: ``(6,)`` velocity of the body in its own axes, m/s and rad/s.
            deviation: ``(6,)`` how much faster or slower it may be.
        """

    @abstractmethod
    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        """Poses of single frames, deterministic in evaluation mode.

        Args:
            codec: the map's origin, scale and reference, fitted on the training poses.
            samples: alternatives wanted for the covariance; systems without any give none.

        Raises:
            ModelError: a sample has no modality, or the answer is not finite.
        """

    def locate_frames(
        self, batches: Iterable[ModelInput], runs: Sequence[int], codec: PoseCodec, samples: int = 0
    ) -> Prediction:
        """Poses of many frames in order of time.

        Args:
            runs: number of frames in each uninterrupted run of successive frames; their sum is the number of frames.
            codec: see :meth:`locate`; likewise ``samples``.

        Raises:
            ModelError: as :meth:`locate`.
        """
        return Prediction.joined([self.locate(batch, codec, samples) for batch in batches])

    def modality_features(self, batch: ModelInput) -> Mapping[str, Tensor]:
        """:attr:`Prediction.features` alone, without the answer; empty for systems that give none.

        Raises:
            ModelError: a sample has no modality.
        """
        return {}


class RegressionModel(PoseModel):
    """A system whose network ends in the codec's pose vectors."""

    @abstractmethod
    def forward(self, batch: ModelInput) -> Tensor:
        """Pose vectors ``(B, 6)``: normalised position and log-quaternion."""

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        return decode_vectors(self(batch).unsqueeze(0), codec)


class VariationalModel(RegressionModel):
    """A system with a Gaussian latent between its encoders and its regressor.

    Attributes:
        latent_dim: D.
    """

    latent_dim: int

    @abstractmethod
    def encode(self, batch: ModelInput) -> Posterior:
        """Posterior of every sample. Raises ModelError where a sample has no modality."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Pose vectors ``(..., 6)`` of latents ``(..., D)``."""

    def forward(self, batch: ModelInput) -> Tensor:
        """Pose vectors ``(B, 6)`` at the posterior mean."""
        return self.decode(self.encode(batch).joint.mean)

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        """Poses at the posterior mean; the alternatives are decoded posterior samples."""
        posterior = self.encode(batch)
        joint = posterior.joint
        # The same for every frame and batch: the same frame always gives the same covariance.
        noise = torch.randn((samples, self.latent_dim), generator=torch.Generator().manual_seed(0))
        drawn = joint.mean + torch.exp(0.5 * joint.log_variance) * noise.to(joint.mean).unsqueeze(1)
        prediction = decode_vectors(self.decode(torch.cat([joint.mean.unsqueeze(0), drawn])), codec, posterior)
        return replace(prediction, features=_means(posterior))

    def modality_features(self, batch: ModelInput) -> Mapping[str, Tensor]:
        return _means(self.encode(batch))


def _means(posterior: Posterior) -> dict[str, Tensor]:
    return {name: expert.mean for name, expert in posterior.experts.items()}


class ClipModel(RegressionModel):
    """A system that reads each frame in the light of its neighbours in time.

    The part per frame is separate, so that a robot passes every frame through it once only.
    """

    looks_back: ClassVar[bool] = True

    @abstractmethod
    def frame_features(self, batch: ModelInput) -> Tensor:
        """Features ``(B, F)`` of single frames."""

    @abstractmethod
    def decode_clip(self, features: Tensor) -> Tensor:
        """Pose vectors ``(B, T, 6)`` of clips ``(B, T, F)``, oldest frame first."""

    def decode_window(self, features: Tensor) -> Tensor:
        """Pose vectors ``(T, 6)`` of the newest frames ``(T, F)``, T from 1 to ``clip_length``.

        Where there are fewer frames than a clip has, the oldest is repeated in front of it, as training does.
        """
        missing = self.clip_length - len(features)
        clip = torch.cat([features[:1].expand(missing, -1), features])
        return self.decode_clip(clip.unsqueeze(0))[0, missing:]

    def forward(self, batch: ModelInput) -> Tensor:
        """Pose vectors ``(B, 6)`` of frames without neighbours."""
        features = self.frame_features(batch).unsqueeze(1)
        return self.decode_clip(features.expand(-1, self.clip_length, -1))[:, -1]

    def locate_frames(
        self, batches: Iterable[ModelInput], runs: Sequence[int], codec: PoseCodec, samples: int = 0
    ) -> Prediction:
        """Each pose from the newest ``clip_length`` frames of its run, as a robot would have them."""
        features = torch.cat([self.frame_features(batch) for batch in batches])
        vectors = [
            self.decode_window(run[max(0, end - self.clip_length) : end])[-1]
            for run in torch.split(features, list(runs))
            for end in range(1, len(run) + 1)
        ]
        return decode_vectors(torch.stack(vectors).unsqueeze(0), codec)


class MemoryModel(PoseModel):
    """A system that is not trained but remembers its training frames."""

    @abstractmethod
    def describe(self, batch: ModelInput) -> Tensor:
        """Descriptors ``(B, F)`` of single frames."""

    @abstractmethod
    def memorise(self, descriptors: Tensor, positions_m: Array, quaternions_wxyz: Array) -> None:
        """Replace what is remembered: ``(N, F)``, ``(N, 3)``, ``(N, 4)``; part of the state dict from then on."""


def require_modality(batch: ModelInput, modalities: tuple[str, ...]) -> None:
    """Raises ModelError: a sample has none of the modalities."""
    present = torch.stack([batch.present[name] for name in modalities]).any(dim=0)
    if not bool(present.all()):
        missing = torch.nonzero(~present).flatten().tolist()
        raise ModelError(f"no modality is present in sample {missing} of the batch; a pose needs at least one")


def decode_vectors(vectors: Tensor, codec: PoseCodec, posterior: Posterior | None = None) -> Prediction:
    """Prediction from pose vectors ``(1 + K, B, 6)``: the answer, then its alternatives.

    Raises:
        ModelError: a value is not finite.
    """
    values = vectors.double().cpu().numpy()
    if not np.isfinite(values).all():
        raise ModelError("the network's output is not finite")
    positions, quaternions = codec.decode(values)
    return Prediction(positions[0], quaternions[0], positions[1:], quaternions[1:], posterior=posterior)
