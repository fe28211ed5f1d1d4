# SPDX-License-Identifier: Apache-2.0
"""What every localization system is: its configuration, its input, its answer, and the classes it derives from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

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
    """What is needed to build a model, beside the channels that preprocessing gives. Systems ignore what they lack.

    Attributes:
        name: an entry of the registry; ``vmloc models`` lists it.
        backbone: torchvision classification CNN of every encoder.
        latent_dim: D of the latent space (VMLoc: 1024).
        hidden_dim: width between the regressor's two layers.
        attention_reduction: the attended features divided by the attention's inner size.
        dropout: before the pose heads, in training only.
        feature_dim: width of the layer before the heads of ``atloc``, ``mapnet``, ``posenet_plus`` (AtLoc: 2048),
            ``hourglass``, and before the LSTM of ``vidloc``.
        clip_length: frames that training shows together, and that ``vidloc`` looks back on; None takes the system's
            own: 3 for ``mapnet``, 16 for ``vidloc``, 1 for all others.
        clip_spacing: frames from one of them to the next, for ``mapnet``; None takes its own: 10.
        recurrent_dim: LSTM units per direction of ``vidloc``.
        bidirectional: whether ``vidloc``'s LSTM reads clips backwards too.
        cell_stride: pixels per cell of an image or depth image, for dense systems.
        lidar_stride: likewise of a range image.
        cell_blocks: residual blocks of the network that every cell passes, ``hidden_dim`` wide.
        context: whether cells also see the mean of the whole picture's features, for maps in which places look alike.
        regions: parts that a dense system divides a large map into, each with coordinates of its own; 1: none. About
            one for every 50 m of road.
        frozen: the trunks stay as they are, so that training computes their features once.
        hypotheses: poses that the solver tries first.
        map_voxel_m: side of the voxels of a map of measured points that dense systems register scans to; 0: none.
    """

    name: str = "vmloc"
    backbone: str = "resnet34"
    latent_dim: int = 1024
    hidden_dim: int = 1024
    attention_reduction: int = 8
    dropout: float = 0.5
    feature_dim: int = 2048
    clip_length: int | None = None
    clip_spacing: int | None = None
    recurrent_dim: int = 256
    bidirectional: bool = True
    cell_stride: int = 8
    lidar_stride: int = 4
    cell_blocks: int = 2
    context: bool = False
    regions: int = 1
    frozen: bool = False
    hypotheses: int = 64
    map_voxel_m: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.latent_dim, self.hidden_dim, self.attention_reduction, self.feature_dim, self.recurrent_dim)
        if min(sizes) < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"sizes must be positive and 0 <= dropout < 1, got {self}")
        if min(self.clip_length or 1, self.clip_spacing or 1) < 1:
            raise ValueError(f"clip_length and clip_spacing must be positive, got {self}")
        if min(self.cell_stride, self.lidar_stride, self.hypotheses, self.regions) < 1 or self.cell_blocks < 0:
            raise ValueError(
                f"cell_stride, lidar_stride, hypotheses and regions must be positive, cell_blocks >= 0, got {self}"
            )


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


class PoseModel(nn.Module, ABC):
    """A system that answers sensor frames with poses. What training, checkpoint, localizer and node know of it.

    Deriving from this class alone, a system may reach its pose by any way: ``nearest`` looks it up, and
    ``vmloc_dense`` solves for it, from ``batch.measured`` and ``batch.intrinsics``.

    Attributes:
        modalities: what it takes, in order; any one of them is enough.
        clip_length: frames of a training clip; 1 where frames are seen singly.
        clip_spacing: frames from one of a clip to the next.
        needs_geometry: wants ``ModelInput.measured``, ``ModelInput.intrinsics`` and :meth:`set_mounts`.
    """

    clip_length: int = 1
    clip_spacing: int = 1
    needs_geometry: ClassVar[bool] = False

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
