# SPDX-License-Identifier: Apache-2.0
"""Input and output of localization systems."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.core.models.fusion import Gaussian, product_of_experts

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ModelInput:
    """A batch of B frames.

    Attributes:
        tensors: per modality ``(B, C, H, W)`` float32, normalised.
        present: per modality ``(B,)`` bool; rows of ``tensors`` where it is False are ignored.
        measured: per modality ``(B, C, H, W)`` the same window before normalisation, in metres and the sensor's units
            (see :meth:`Preprocessor.prepare`); None unless the system sets ``needs_geometry``, likewise the following.
        intrinsics: ``(B, 3, 3)`` camera matrices of that window; NaN where the camera is unknown.
        twists: ``(B, 6)`` velocities of the body in its own axes, m/s and rad/s; NaN or None where unknown.
        shown: ``(B, H, W)`` bool, False for pixels of the camera's window that augmentation has filled in; None if
            there are none.
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
        """The same batch, with all other modalities marked as absent."""
        return replace(self, present={name: x & (name in names) for name, x in self.present.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Posterior ``q(z | x)`` of B frames.

    Attributes:
        joint: ``(B, D)`` product of the prior and of the experts that are present.
        experts: per modality ``(B, D)``, undefined where it is absent.
        present: per modality ``(B,)`` bool.
    """

    joint: Gaussian
    experts: Mapping[str, Gaussian]
    present: Mapping[str, Tensor]

    @staticmethod
    def of_experts(experts: Mapping[str, Gaussian], present: Mapping[str, Tensor]) -> Posterior:
        """The posterior of B frames from the experts of their sensors, by :func:`product_of_experts`.

        Raises:
            ModelError: a frame has no modality.
        """
        stacked = Gaussian(
            torch.stack([expert.mean for expert in experts.values()]),
            torch.stack([expert.log_variance for expert in experts.values()]),
        )
        return Posterior(
            product_of_experts(stacked, torch.stack([present[name] for name in experts])), experts, present
        )

    def of_sensors(self, rows: Tensor, present: Mapping[str, Tensor]) -> Posterior:
        """The posterior of some frames as if they had only some of their sensors; the encoders do not run again.

        Args:
            rows: ``(N,)`` frames, which may repeat.
            present: per modality ``(N,)`` bool, the sensors to use; true only where :attr:`present` is.
        """
        experts = {name: Gaussian(x.mean[rows], x.log_variance[rows]) for name, x in self.experts.items()}
        return Posterior.of_experts(experts, present)

    def mean_std(self) -> dict[str, Tensor]:
        """Standard deviations ``(B,)``, mean over the latent: of the joint and of each expert (NaN where absent)."""
        spread = {name: _mean_std(expert) for name, expert in self.experts.items()}
        absent = {name: x.masked_fill(~self.present[name], torch.nan) for name, x in spread.items()}
        return {"joint": _mean_std(self.joint), **absent}


def _mean_std(gaussian: Gaussian) -> Tensor:
    return torch.exp(0.5 * gaussian.log_variance).mean(dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Estimated poses of B frames in the map, with their spread and quality figures.

    Attributes:
        positions_m: ``(B, 3)``.
        quaternions_wxyz: ``(B, 4)`` map from body.
        sample_positions_m: ``(K, B, 3)`` of K >= 0 posterior samples.
        sample_quaternions_wxyz: ``(K, B, 4)``.
        covariances: ``(B, 6, 6)`` (x, y, z, rotation about the fixed map axes) that the system itself computes, such as
            a solver's inverse Hessian; used in place of the samples' spread. None for other systems.
        posterior: of variational systems.
        features: per modality ``(B, F)`` features that are compared with those of training frames; undefined where the
            modality is absent. Without features a system has no confidence.
        outlier_scores: ``(B, C)`` the system's own quality figures, such as a solver's share of outliers; larger is
            worse.
        lost: ``(B,)`` bool, the system found no pose; confidence is then zero.
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
        """Concatenate predictions; the posterior is dropped, because it is large."""
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
