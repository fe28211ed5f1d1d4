# SPDX-License-Identifier: Apache-2.0
"""What the training of a system needs beside its objective: before the first step, and to draw its batches from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import TrainConfig
from training.data.dataset import PreparedDataset
from training.data.frozen_features import FrozenFeatures
from training.data.training_data import AugmentedFrames, TrainingData
from training.trainer.dense_map import build_point_map, learn_extent
from training.trainer.store_frames import store_frames
from vmloc_ros.core.models import DenseModel, MemoryModel, PoseModel, find_system
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor


@dataclass(frozen=True, slots=True)
class TrainingFrames:
    """Frames that a model is trained on.

    Attributes:
        config: of the training.
        data: all frames.
        rows: of the data, to train on.
        device: where the model is.
    """

    config: TrainConfig
    data: PreparedDataset
    rows: Tensor
    device: torch.device

    @property
    def preprocessor(self) -> Preprocessor:
        return Preprocessor(self.config.preprocess)


class Lifecycle:
    """Training of a network that ends in a pose: augmented frames, gradient steps, nothing else.

    Attributes:
        by_gradients: whether gradient steps train the system; else it has a method ``store``.
    """

    by_gradients = True

    def training_data(self, model: PoseModel, frames: TrainingFrames) -> TrainingData:
        """What steps draw their batches from."""
        config = frames.config
        return AugmentedFrames(frames.data, config.augment, frames.preprocessor, frames.device, model.needs_geometry)

    def initialise(self, model: PoseModel, frames: TrainingFrames, codec: PoseCodec) -> None:
        """Set what the model takes from its training frames before the optimizer exists."""

    def complete(self, model: PoseModel, averaged: PoseModel, frames: TrainingFrames, codec: PoseCodec) -> None:
        """Add what a model needs before its first step and a resumed one has already.

        Args:
            averaged: the model whose weights are averages, or the model itself.

        Raises:
            DataError: the frames do not give it.
        """


class DenseLifecycle(Lifecycle):
    """Training of map coordinates: the map's extent, a map of points, and where trunks are frozen their features."""

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
        learn_extent(model, frames.data, frames.rows, frames.preprocessor, codec, frames.device)

    def complete(self, model: DenseModel, averaged: DenseModel, frames: TrainingFrames, codec: PoseCodec) -> None:
        if model.map is None or len(model.map):
            return
        build_point_map(model, frames.data, frames.rows, frames.preprocessor, codec, frames.device)
        if averaged is not model:  # a copy from before there was a map
            averaged.map.fill(model.map.points_m, model.map.normals)


class MemoryLifecycle(Lifecycle):
    """One pass over the training frames, which the system stores; no gradients."""

    by_gradients = False

    def store(self, model: MemoryModel, frames: TrainingFrames, progress: bool) -> None:
        """Let the model store the frames; ``progress``: whether to show how far it has come."""
        store_frames(model, frames.data, frames.rows, frames.preprocessor, frames.device, progress)


_OF_OBJECTIVES = {None: MemoryLifecycle(), "cells": DenseLifecycle()}


def lifecycle_of(system: str) -> Lifecycle:
    """The lifecycle that the system's objective in the registry asks for. Raises ModelError: the name is unknown."""
    return _OF_OBJECTIVES.get(find_system(system).objective, Lifecycle())
