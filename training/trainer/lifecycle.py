# SPDX-License-Identifier: Apache-2.0
"""What the training of a system needs beside its objective: its training data, and preparation of the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import TrainConfig
from training.data.dataset import PreparedDataset
from training.data.frozen_features import FrozenFeatures
from training.data.training_data import AugmentedFrames, TrainingData
from training.trainer.map_extent import set_map_extent
from training.trainer.map_points import build_point_map
from training.trainer.store_frames import store_frames
from vmloc_ros.core.models import DenseModel, MemoryModel, PoseModel, find_system
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor


@dataclass(frozen=True, slots=True)
class TrainingFrames:
    """Frames that a model is trained on.

    Attributes:
        config: configuration of the training.
        data: all frames.
        rows: rows of the data to train on.
        device: device of the model.
    """

    config: TrainConfig
    data: PreparedDataset
    rows: Tensor
    device: torch.device

    @property
    def preprocessor(self) -> Preprocessor:
        return Preprocessor(self.config.preprocess)


class Lifecycle:
    """Training of a pose regression network: augmented frames and gradient steps.

    Attributes:
        by_gradients: whether the system is trained by gradient steps; if not, the lifecycle has a method ``store``.
    """

    by_gradients = True

    def training_data(self, model: PoseModel, frames: TrainingFrames) -> TrainingData:
        """Rows from which the steps draw their batches."""
        config = frames.config
        return AugmentedFrames(
            frames.data, config.drawn_augment, frames.preprocessor, frames.device, model.needs_geometry
        )

    def initialise(self, model: PoseModel, frames: TrainingFrames, codec: PoseCodec) -> None:
        """Initialise the model from its training frames, before the optimizer is built."""

    def complete(self, model: PoseModel, averaged: PoseModel, frames: TrainingFrames, codec: PoseCodec) -> None:
        """Complete the model before its first step; a resumed training, whose model is complete, is not changed.

        Args:
            averaged: the model with averaged weights, or the model itself.

        Raises:
            DataError: the frames do not suffice.
        """


class DenseLifecycle(Lifecycle):
    """Training of dense systems: extent and point map of the model, and precomputed features of frozen trunks."""

    def training_data(self, model: DenseModel, frames: TrainingFrames) -> TrainingData:
        config = frames.config
        if not model.frozen:
            return super().training_data(model, frames)
        return FrozenFeatures(
            model,
            frames.data,
            frames.rows,
            frames.preprocessor,
            config.augment,
            config.frozen,
            config.seed,
            frames.device,
        )

    def initialise(self, model: DenseModel, frames: TrainingFrames, codec: PoseCodec) -> None:
        set_map_extent(model, frames.data, frames.rows, frames.preprocessor, codec, frames.device)

    def complete(self, model: DenseModel, averaged: DenseModel, frames: TrainingFrames, codec: PoseCodec) -> None:
        if model.map is None or len(model.map):
            return
        build_point_map(model, frames.data, frames.rows, frames.preprocessor, codec, frames.device)
        if averaged is not model:  # it was copied before the map was built
            averaged.map.fill(model.map.points_m, model.map.normals)


class MemoryLifecycle(Lifecycle):
    """Systems that store their training frames, in one pass, instead of being trained by gradients."""

    by_gradients = False

    def store(self, model: MemoryModel, frames: TrainingFrames, progress: bool) -> None:
        """Store the training frames in the model; ``progress`` shows a progress bar."""
        store_frames(model, frames.data, frames.rows, frames.preprocessor, frames.device, progress)


_OF_OBJECTIVES = {None: MemoryLifecycle(), "cells": DenseLifecycle()}


def lifecycle_of(system: str) -> Lifecycle:
    """The lifecycle for the system's objective in the registry. Raises ModelError: the name is unknown."""
    return _OF_OBJECTIVES.get(find_system(system).objective, Lifecycle())
