# SPDX-License-Identifier: Apache-2.0
"""Training runs and evaluations that the tables share; each is done once and stored."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from training.config import TrainConfig, applicable, flatten, load_config, parse_config, read_layer
from training.evaluation.corruption import MISSING, NO_CORRUPTION, Corruption
from training.evaluation.evaluate import evaluate_checkpoints
from training.output import write_text
from training.reproduction.experiments import Condition, Variant
from training.reproduction.scenes import SceneData, TableScene
from training.sources.caching import default_cache
from training.trainer.run_files import RunFiles
from training.trainer.train import train
from vmloc_ros.core.checkpoint import read_header
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import ConfigError, DataError, ModelError
from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.models import DEFAULT_SYSTEM, select_modalities
from vmloc_ros.core.resources import share_path

logger = logging.getLogger(__name__)

NEAREST = "nearest"
_IN_COMMON = ("preprocess.", "model.backbone", "pretrained")  # no system's own recipe changes these
_DATA_FILE = "test_data.txt"


@dataclass(frozen=True, slots=True)
class Settings:
    """How runs are trained, and where they are stored.

    Attributes:
        config_files: over the scene's and the system's own, but below a variant's recipe.
        overrides: ``key=value``, over all files.
        may_train: if False, variants without a checkpoint have no results.
        retrain: replace checkpoints that were trained with other settings.
        nearest_backbone: of the retrieval baseline; None takes the configuration's.
        nearest_weights: its state-dict file; None takes the configuration's, or ImageNet's where it has none.
    """

    out: Path
    config_files: Sequence[Path] = ()
    overrides: Sequence[str] = ()
    device: str = "auto"
    may_train: bool = True
    retrain: bool = False
    nearest_backbone: str | None = None
    nearest_weights: Path | None = None
    progress: bool = True


class State(Enum):
    """State of a run's checkpoint."""

    ABSENT = "absent"
    UNFINISHED = "unfinished"
    FINISHED = "finished"
    OTHER = "of other settings"


@dataclass(frozen=True, slots=True)
class Run:
    """Training of a variant on a scene."""

    scene: TableScene
    variant: Variant
    seed: int

    def __str__(self) -> str:
        return f"{self.variant.name} on {self.scene.name}, seed {self.seed}"

    def checkpoint(self, settings: Settings) -> Path:
        return settings.out / self.scene.name / f"{self.variant.name}_seed{self.seed}.safetensors"

    def layers(self, settings: Settings) -> tuple[list[Path], list[str]]:
        """Configuration files and overrides, later ones over earlier ones."""
        files = [share_path("config", "train", self.scene.config), *system_files(self.variant), *settings.config_files]
        shared = applicable([*self.scene.settings, *settings.overrides], self.variant.system)
        overrides = [*self._recipe(), *shared, *self.variant.settings]
        overrides += [f"model.name={self.variant.system}", f"seed={self.seed}"]
        if self.variant.system == NEAREST:
            overrides += _retrieval(load_config(files, overrides), settings)
        return files, overrides

    def _recipe(self) -> list[str]:
        """The variant's recipe for this kind of scene, as overrides."""
        if self.scene.kind not in self.variant.recipes:
            return []
        values = flatten(read_layer(share_path("config", "train", self.variant.recipes[self.scene.kind])))
        if values.get("model.regions") and self.scene.regions:
            values["model.regions"] = self.scene.regions
        return [f"{key}={json.dumps(value)}" for key, value in values.items() if not key.startswith(_IN_COMMON)]

    def config(self, settings: Settings) -> TrainConfig:
        """The configuration that a checkpoint of this run records. Raises ConfigError, ModelError: it does not fit."""
        config = load_config(*self.layers(settings))
        modalities = select_modalities(config.model.name, config.preprocess.modalities)
        return replace(config, preprocess=replace(config.preprocess, modalities=modalities))


def system_files(variant: Variant) -> list[Path]:
    """The shipped configuration of the variant's system; empty where its settings are the defaults."""
    name = f"{variant.system}.yaml"
    return [file for file in share_path("config", "train", "systems").iterdir() if file.name == name]


def data_config(scene: TableScene, settings: Settings) -> TrainConfig:
    """The scene's configuration without that of a system."""
    files = [share_path("config", "train", scene.config), *settings.config_files]
    return load_config(files, applicable([*scene.settings, *settings.overrides], DEFAULT_SYSTEM))


def _retrieval(config: TrainConfig, settings: Settings) -> list[str]:
    """Overrides for retrieval: without weights of its own it gets ImageNet's, as untrained features are no baseline."""
    overrides = []
    if settings.nearest_backbone:
        overrides.append(f"model.backbone={settings.nearest_backbone}")
    if settings.nearest_weights:
        overrides.append(f"pretrained={json.dumps(str(settings.nearest_weights))}")
    elif config.pretrained is False:
        overrides.append("pretrained=true")
    return overrides


def examine(run: Run, data: SceneData, settings: Settings) -> State:
    """The state of the run's checkpoint.

    Raises:
        ConfigError: a checkpoint of other settings or other data is in its place, and is not to be replaced.
        CheckpointError: the file is damaged.
    """
    path = run.checkpoint(settings)
    if not path.exists():
        return State.ABSENT
    header = read_header(path)
    recorded = parse_config(header.training.get("config", {}), None, f"the configuration in {path}")
    problem = _difference(recorded, run.config(settings)) or _other_data(header.training, data)
    if problem and not settings.retrain:
        raise ConfigError(f"{path} was trained with {problem}; replace it with --retrain, or choose another --out")
    if problem:
        return State.OTHER
    return State.FINISHED if "held_out" in header.metrics else State.UNFINISHED  # the last thing that training writes


def _difference(recorded: TrainConfig, wanted: TrainConfig) -> str:
    """The first key that differs, in words; empty where none does."""
    ours, theirs = flatten(to_mapping(wanted)), flatten(to_mapping(recorded))
    for key, value in ours.items():
        if theirs[key] != value:
            return f"{key} = {theirs[key]}, not {value}"
    return ""


def _other_data(record: Mapping[str, Any], data: SceneData) -> str:
    names = sorted(source["name"] for source in record.get("data", []))
    if names == sorted(data.train):
        return ""
    differing = sorted(set(names) ^ set(data.train)) or names
    return f"other data ({len(names)} sequences, not {len(data.train)}; {differing[0]} differs)"


def carry_out(run: Run, state: State, settings: Settings) -> None:
    """Train, or resume an interrupted training.

    Raises:
        VmlocError: as :func:`training.trainer.train.train`.
    """
    path = run.checkpoint(settings)
    files, overrides = run.layers(settings)
    resume = state is not State.OTHER and RunFiles(path).state.is_file()
    try:
        train(
            config_files=files,
            overrides=overrides,
            data=run.scene.train,
            split=run.scene.split[0],
            out=path,
            device=settings.device,
            resume=resume,
            overwrite=not resume,
            cache=default_cache(),
            progress=settings.progress,
        )
    except ModelError as error:
        if run.variant.system != NEAREST:
            raise
        raise ModelError(f"{error}; name a file with --nearest-weights, or omit {NEAREST} from --systems") from error


def corruption_of(run: Run, condition: Condition, settings: Settings) -> Corruption | None:
    """The corruption of the inputs that the system has; other inputs are ignored. None: no input is left."""
    if condition is None:
        return NO_CORRUPTION
    taken = run.config(settings).preprocess.modalities
    corrupted = [name for name in taken if (name == IMAGE) == (condition.modality == IMAGE)]
    if condition.level == MISSING and len(corrupted) == len(taken):
        return None
    return Corruption(dict.fromkeys(corrupted, condition.level))


def evaluation_folder(run: Run, corruption: Corruption, settings: Settings) -> Path:
    """Folder of the run's results with this corruption."""
    name = "_".join(filter(None, (f"{run.variant.name}_seed{run.seed}", corruption.tag)))
    return settings.out / run.scene.name / "evaluation" / name


def stored_metrics(run: Run, corruption: Corruption, data: SceneData, settings: Settings) -> dict[str, Any] | None:
    """The stored ``metrics.json``, if it is of this checkpoint and these test data."""
    folder = evaluation_folder(run, corruption, settings)
    metrics, described = folder / "metrics.json", folder / _DATA_FILE
    if not (metrics.is_file() and described.is_file()) or described.read_text().strip() != data.fingerprint:
        return None
    if metrics.stat().st_mtime_ns < run.checkpoint(settings).stat().st_mtime_ns:
        return None
    try:
        return json.loads(metrics.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{metrics} is damaged ({error}); delete {folder}") from error


def measure(run: Run, corruption: Corruption, data: SceneData, settings: Settings) -> dict[str, Any]:
    """Evaluate a checkpoint on the scene's test data and store the results.

    Raises:
        VmlocError: as :func:`training.evaluation.evaluate.evaluate_checkpoints`.
    """
    folder = evaluation_folder(run, corruption, settings)
    (folder / _DATA_FILE).unlink(missing_ok=True)
    report = evaluate_checkpoints(
        [run.checkpoint(settings)],
        run.scene.test,
        split=run.scene.split[1],
        out=folder,
        device=settings.device,
        corruption=corruption,
        all_sensors=True,
        progress=settings.progress,
    )
    write_text(folder / _DATA_FILE, data.fingerprint + "\n")  # last: without it the results do not count
    return report.metrics
