# SPDX-License-Identifier: Apache-2.0
"""From a frame to a pose with covariance: the path that the robot and every evaluation share."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.core.checkpoint import CheckpointHeader, Uncertainty, load_checkpoint, load_confidence
from vmloc_ros.core.confidence import Confidence
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import DEPTH, IMAGE, Estimate, Frame, PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ModelInput, PoseModel, Prediction
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.stream import Stream
from vmloc_ros.core.uncertainty import (
    growth_factors,
    inflated_covariance,
    position_std_m,
    residual_covariance,
    sample_covariance,
)

logger = logging.getLogger(__name__)

_LARGEST_STD_RATIO = 2.0  # of the position without the dropped sensors to that with all


class Localizer:
    """A trained model with its preprocessing and calibration: frames in, estimates out.

    Attributes:
        header: the checkpoint's header.
        modalities: names of the model's modalities; any one of them is enough for an estimate.
        map_frame: frame of the poses.
        body_frame: the frame whose pose is estimated.
        confidence: null distributions of the checkpoint; None leaves estimates without a confidence.
        drop_outlier_sensors: whether to drop a sensor whose features are outliers (see
            :meth:`Confidence.plausible_sensors`), as if it were missing. This is done only where the estimate without
            it has a higher confidence and a position of at most twice the standard deviation.
    """

    drop_outlier_sensors = True

    def __init__(
        self,
        header: CheckpointHeader,
        model: PoseModel,
        device: torch.device | str = "cpu",
        confidence: Confidence | None = None,
    ) -> None:
        self.header, self.confidence = header, confidence
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.modalities = header.preprocess.modalities
        self.map_frame, self.body_frame = header.map_frame, header.body_frame
        self._preprocessor = Preprocessor(header.preprocess)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Localizer:
        """Load a checkpoint onto ``cpu``, ``cuda``, ``cuda:N`` or, with ``auto``, a GPU where there is one.

        Raises:
            CheckpointError: see :func:`vmloc_ros.core.checkpoint.load_checkpoint`.
            ModelError: the device does not exist.
        """
        header, model = load_checkpoint(Path(path))
        return cls(header, model, select_device(device), load_confidence(Path(path)))

    @torch.inference_mode()
    def localize(self, frame: Frame, batch: ModelInput | None = None) -> Estimate:
        """Estimate the pose of a single frame.

        Args:
            batch: the result of :meth:`preprocess`, where that has been done already.

        Raises:
            ModelError: the frame has none of the model's modalities, or the prediction is not finite.
        """
        batch = self.preprocess(frame) if batch is None else batch
        names = self.present(batch)
        try:
            prediction = self._locate(batch)
            estimate = self.estimate(frame.stamp_ns, names, prediction)
            kept = self._plausible_sensors(names, prediction)
            if kept == names:
                return estimate
            other = self.estimate(frame.stamp_ns, kept, self._locate(batch.only(kept)))
        except ModelError as error:
            raise ModelError(f"frame at {frame.stamp_ns} ns: {error}") from error
        assert estimate.confidence is not None
        assert other.confidence is not None
        # A withheld estimate is better than metres in place of centimetres. Written so that NaN keeps all sensors.
        limit_m = _LARGEST_STD_RATIO * position_std_m(estimate.covariance)
        if not position_std_m(other.covariance) <= limit_m or other.confidence <= estimate.confidence:
            return estimate
        return replace(other, dropped_sensors=tuple(name for name in names if name not in kept))

    def _locate(self, batch: ModelInput) -> Prediction:
        return self.model.locate(batch, self.header.pose_codec, self.header.uncertainty.samples)

    def _plausible_sensors(self, modalities: tuple[str, ...], prediction: Prediction) -> tuple[str, ...]:
        if not (self.drop_outlier_sensors and self.confidence and prediction.features):
            return modalities
        return self.confidence.plausible_sensors(modalities, _first(prediction, modalities))

    def stream(self, lookahead: int = 0) -> Stream:
        """A stream of frames that come one after another, for systems that read clips.

        Raises:
            ConfigError: ``lookahead`` does not fit the system's clip.
        """
        return Stream(self, lookahead)

    def preprocess(self, frame: Frame) -> ModelInput:
        """Model input of one frame, batch size 1, on the device. Raises ModelError: it has none of the modalities."""
        prepared = {name: x.unsqueeze(0).to(self.device) for name, x in self._preprocessor.prepare(frame).items()}
        absent = torch.zeros(1, device=self.device)

        def complete(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensors.get(name, absent) for name in self.modalities}

        batch = ModelInput(
            complete(self._preprocessor.normalise(prepared)),
            {name: torch.tensor([name in prepared], device=self.device) for name in self.modalities},
        )
        if not self.model.needs_geometry:
            return batch
        intrinsics = self._preprocessor.intrinsics(frame).unsqueeze(0).to(self.device)
        return replace(
            batch,
            measured=complete(self._preprocessor.crop(prepared)),
            intrinsics=self._preprocessor.crop_intrinsics(intrinsics, prepared),
        )

    def usable(self, frame: Frame) -> Frame:
        """The frame without what the system cannot use; see :meth:`Preprocessor.usable`."""
        return self._preprocessor.usable(frame)

    def present(self, batch: ModelInput) -> tuple[str, ...]:
        """Modalities that a single frame's input has."""
        return tuple(name for name in self.modalities if bool(batch.present[name]))

    def estimate(self, stamp_ns: int, modalities: tuple[str, ...], prediction: Prediction) -> Estimate:
        """The estimate of the first frame of a prediction."""
        pose = Pose(prediction.positions_m[0], prediction.quaternions_wxyz[0])
        lost = prediction.lost is not None and bool(prediction.lost[0])
        neg_log_p = None if lost else self._neg_log_p_value(modalities, prediction)
        covariance = total_covariance(
            prediction, 0, self.header.uncertainty, modalities, 0.0 if neg_log_p is None else float(neg_log_p[0])
        )
        posterior = prediction.posterior
        spread = {} if posterior is None else {name: float(x[0]) for name, x in posterior.mean_std().items()}
        confidence = 0.0 if lost else None
        if neg_log_p is not None and self.confidence is not None:
            confidence = float(self.confidence.p_value(modalities, neg_log_p)[0])
        return Estimate(
            stamp_ns,
            pose,
            covariance,
            modalities,
            {name: x for name, x in spread.items() if math.isfinite(x)},
            confidence,
        )

    def _neg_log_p_value(self, modalities: tuple[str, ...], prediction: Prediction) -> NDArray[np.float64] | None:
        """``(1,)`` for the first frame; None where it has no confidence."""
        if self.confidence is None or not prediction.features:
            return None
        return self.confidence.neg_log_p_value(
            modalities,
            _first(prediction, modalities),
            prediction.positions_m[:1],
            prediction.quaternions_wxyz[:1],
            None if prediction.outlier_scores is None else prediction.outlier_scores[:1],
        )

    def warm_up(self) -> None:
        """Localize one synthetic frame: the first real one is then not delayed by lazy initialisation."""
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


def _first(prediction: Prediction, modalities: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
    """Features ``(1, F)`` of the first frame."""
    return {name: prediction.features[name][:1].cpu().numpy() for name in modalities}


def total_covariance(
    prediction: Prediction, row: int, uncertainty: Uncertainty, modalities: tuple[str, ...], neg_log_p: float = 0.0
) -> NDArray[np.float64]:
    """Covariance ``(6, 6)`` of a batch's row: the system's own plus that of held-out residuals, inflated.

    Args:
        modalities: the sensors that the row's prediction uses.
        neg_log_p: of the row; see :meth:`vmloc_ros.core.confidence.Confidence.neg_log_p_value`.
    """
    pose = Pose(prediction.positions_m[row], prediction.quaternions_wxyz[row])
    residuals = uncertainty.residuals(modalities)
    covariance = prediction_covariance(prediction, row) + residual_covariance(pose, residuals.residual_std)
    inflation = np.asarray(residuals.inflation) * growth_factors(neg_log_p, residuals.growth)
    return inflated_covariance(covariance, inflation, residuals.coupling)


def prediction_covariance(prediction: Prediction, row: int) -> NDArray[np.float64]:
    """The system's own covariance ``(6, 6)`` of a batch's row; zero for systems without one."""
    if prediction.covariances is not None:
        return prediction.covariances[row]
    if not len(prediction.sample_positions_m):
        return np.zeros((6, 6))
    pose = Pose(prediction.positions_m[row], prediction.quaternions_wxyz[row])
    return sample_covariance(pose, prediction.sample_positions_m[:, row], prediction.sample_quaternions_wxyz[:, row])


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
