# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the newest and of the best weights during a training."""

from __future__ import annotations

import math
from dataclasses import replace

from training.trainer.distributed import Processes
from training.trainer.model_training import ModelTraining
from training.trainer.run_files import RunFiles
from training.trainer.validation import score
from vmloc_ros.core.checkpoint import CheckpointHeader, save_checkpoint


class Checkpoints:
    """Saves the weights after each epoch; of several processes the first one writes.

    Args:
        files: of the run.
        header: of the checkpoints, without metrics.
        validated: whether there are validation frames; without them the newest weights are the best.
    """

    def __init__(self, files: RunFiles, header: CheckpointHeader, validated: bool, processes: Processes) -> None:
        self._files, self._header, self._validated, self._processes = files, header, validated, processes

    def save(self, training: ModelTraining, metrics: dict[str, float] | None) -> None:
        """Save the newest weights, and also as the best ones if they are; updates best score and patience.

        Args:
            metrics: of the validation, None where none was due.

        Raises:
            OutputError: a file cannot be written.
        """
        state, reached = training.progress, self._score(metrics)
        better = reached <= state.best
        if better:
            state.best, state.stale = reached, 0
        elif metrics is not None:
            state.stale += 1
        if self._processes.first:
            header, weights = replace(self._header, metrics=metrics or {}), training.optimizer.best_model.state_dict()
            if better:
                save_checkpoint(self._files.best, header, weights)
            save_checkpoint(self._files.last, header, weights)

    def _score(self, metrics: dict[str, float] | None) -> float:
        """Score to minimise: ``-inf`` always replaces the best weights, ``inf`` only the first ones."""
        if metrics is None:
            return math.inf if self._validated else -math.inf
        return score(metrics, self._header.pose_codec.scale_m)
