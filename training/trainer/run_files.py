# SPDX-License-Identifier: Apache-2.0
"""Files of a training run: checkpoints, log, configuration, and the state for resuming."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from training.config import TrainConfig, flatten, upgraded
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import CheckpointError, ConfigError, OutputError
from vmloc_ros.core.files import write_aside


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths of a run's files, which are named after its checkpoint.

    Attributes:
        best: ``OUT.safetensors``, the checkpoint with the best weights.
    """

    best: Path

    @property
    def last(self) -> Path:
        """The checkpoint with the newest weights."""
        return self._beside(".last.safetensors")

    @property
    def state(self) -> Path:
        """The state for resuming."""
        return self._beside(".state.pt")

    @property
    def log(self) -> Path:
        """CSV file with a row per epoch."""
        return self._beside(".csv")

    @property
    def config(self) -> Path:
        """YAML file of the configuration with all defaults."""
        return self._beside(".yaml")

    @property
    def plan(self) -> Path:
        """YAML file of the settings that a survey of the data suggested, with the reasons."""
        return self._beside(".plan.yaml")

    @property
    def events(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self._beside(".tensorboard")

    def check_config(self, config: TrainConfig, files: Sequence[Path]) -> None:
        """Raise OutputError where :meth:`save_config` would overwrite one of the user's files with other content."""
        given = self.config.exists() and any(self.config.samefile(file) for file in files)
        if given and not _is_written_form(self.config.read_text(), config):
            raise OutputError(
                f"{self.config} is given as configuration, and the run would overwrite it with all defaults and "
                "overrides; choose another OUT"
            )

    def save_config(self, config: TrainConfig) -> None:
        """Write the configuration with all defaults. Raises OutputError: the file cannot be written."""
        with write_aside(self.config) as path:
            path.write_text(_as_yaml(config))

    def remove_leftovers(self) -> None:
        """Remove temporary files of a run that was killed while writing."""
        for file in (self.best, self.last, self.state, self.log, self.config):
            for leftover in file.parent.glob(f".{glob.escape(file.name)}.*.tmp"):
                leftover.unlink(missing_ok=True)

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the state. Raises OutputError: the file cannot be written; an existing one stays as it was."""
        with write_aside(self.state) as path:
            torch.save(state, path)

    def load_state(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Read the state of a run with this identity, to the CPU.

        Raises:
            CheckpointError: the file is missing or damaged.
            ConfigError: it belongs to another configuration or other data.
        """
        if not self.state.is_file():
            raise CheckpointError(f"nothing to resume: {self.state} does not exist; train without --resume")
        try:
            state = torch.load(self.state, map_location="cpu", weights_only=True)
            found = {**state["identity"], "config": upgraded(state["identity"]["config"])}
        except Exception as error:  # torch.load raises many types for a damaged file
            raise damaged_state(self.state, error) from error
        if found != identity:
            raise ConfigError(
                f"{self.state} was written with another configuration or other data; use those, or train to another OUT"
            )
        return dict(state)

    def _beside(self, suffix: str) -> Path:
        return self.best.with_name(self.best.stem + suffix)


def _as_yaml(config: TrainConfig) -> str:
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def _is_written_form(text: str, config: TrainConfig) -> bool:
    """Whether this version or an earlier one, whose files hold the settings of all systems, wrote the text."""
    if text == _as_yaml(config):
        return True
    values = yaml.safe_load(text)
    if not isinstance(values, dict) or text != yaml.safe_dump(values, sort_keys=False):
        return False
    return flatten(values).keys() >= flatten(to_mapping(config)).keys() and upgraded(values) == to_mapping(config)


def damaged_state(path: Path, error: Exception) -> CheckpointError:
    """The error for a state file that cannot be used."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"{path} is damaged ({reason}); train from the start")
