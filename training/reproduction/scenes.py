# SPDX-License-Identifier: Apache-2.0
"""Find the paper's scenes, and others, in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from training.config import TrainConfig
from training.sources.base import Source
from training.sources.factory import open_sources
from training.sources.robotcar.source import is_sequence, select_sequences
from training.sources.rosbag.source import is_bag
from vmloc_ros.core.errors import DataError

# Frames of the official splits: train, test.
_SEVEN_SCENES = {
    "chess": (4000, 2000),
    "fire": (2000, 2000),
    "heads": (1000, 1000),
    "office": (6000, 4000),
    "pumpkin": (4000, 2000),
    "redkitchen": (7000, 5000),
    "stairs": (2000, 1000),
}
_ROBOTCAR = {  # the test sequences' names in the paper
    "loop": {"LOOP1": "2014-06-23-15-36-04", "LOOP2": "2014-06-23-15-41-25"},
    "full": {"FULL1": "2014-12-09-13-21-02", "FULL2": "2014-12-12-10-45-15"},
}
_ROAD_M = {"loop": 1120, "full": 9562}  # length of road, from the literature; not measured here


@dataclass(frozen=True, slots=True)
class TableScene:
    """Data to train on and to test on.

    Attributes:
        kind: ``7scenes``, ``robotcar`` or ``bags``; its configuration is ``config`` of ``config/train``.
        split: of train and of test data, for :func:`training.sources.factory.open_sources`.
        rows: of the table, by name: the test sequence, or None for all of them together.
        settings: overrides of its configuration.
        official: training and test frames of the complete scene, where known.
        regions: of a dense map, one for every 50 m of road; 0: as many as the recipe has.
    """

    name: str
    kind: str
    config: str
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    split: tuple[str, str]
    rows: Mapping[str, str | None] = field(hash=False)
    settings: tuple[str, ...] = ()
    official: tuple[int, int] | None = None
    regions: int = 0
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class SceneData:
    """Frames in a scene's files.

    Attributes:
        train, test: frames of each sequence.
        fingerprint: of the test data; it changes whenever they may have changed.
    """

    train: Mapping[str, int]
    test: Mapping[str, int]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class FoundScenes:
    """Scenes in a folder that a table uses, and for each missing scene a line that says what is missing."""

    scenes: Sequence[TableScene]
    missing: Sequence[str] = field(default_factory=list)


def find_scenes(root: Path, kind: str | None, wanted: Sequence[str] | None) -> FoundScenes:
    """Find the wanted scenes; without ``wanted``, those of the kind, or all scenes where none is of the kind.

    Raises:
        DataError: the folder is missing, has no scene, or lacks one that is wanted.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the one that holds scenes")
    missing: dict[str, str] = {}
    scenes: dict[str, TableScene] = {}
    for name, official in _SEVEN_SCENES.items():
        if (root / name / "TrainSplit.txt").is_file():
            scenes[name] = _seven_scenes(root / name, official)
        else:
            missing[name] = f"{name}: there is no {name}/TrainSplit.txt"
    for name in _ROBOTCAR:
        try:
            scenes[name] = _robotcar(root, name)
            absent = [row for row in _ROBOTCAR[name] if row not in scenes[name].rows]
            missing |= {row: f"{row}: there is no {_ROBOTCAR[name][row]}" for row in absent}
        except DataError as error:
            missing[name] = f"{name.upper()}: {str(error).partition(';')[0]}"  # without its advice for `vmloc train`
    for folder in sorted(path for path in root.iterdir() if path.name not in scenes):
        if _has_bags(folder / "train") and _has_bags(folder / "test"):
            scenes[folder.name] = _bags(folder)
    return _choose(root, scenes, missing, kind, wanted)


def _choose(
    root: Path, scenes: dict[str, TableScene], missing: dict[str, str], kind: str | None, wanted: Sequence[str] | None
) -> FoundScenes:
    if unknown := [name for name in wanted or () if name not in scenes]:
        known = ", ".join(scenes) or "nothing"
        raise DataError(f"{missing.get(unknown[0], f'no scene {unknown[0]!r}')} in {root}; it has {known}")
    if not scenes:
        raise DataError(
            f"{root} has no scene: neither a folder of 7-Scenes ({', '.join(_SEVEN_SCENES)}), nor RobotCar's sequences "
            "of LOOP or FULL, nor a folder NAME with bags in NAME/train and NAME/test"
        )
    of_kind = [scene for scene in scenes.values() if kind in (None, scene.kind)]
    chosen = [scenes[name] for name in wanted] if wanted else of_kind or list(scenes.values())
    names = {"7scenes": tuple(_SEVEN_SCENES), "robotcar": ("loop", "full", "LOOP1", "LOOP2", "FULL1", "FULL2")}
    return FoundScenes(chosen, [text for name, text in missing.items() if name in names.get(kind or "", ())])


def read_scene(scene: TableScene, config: TrainConfig) -> SceneData:
    """Count the frames that remain with the configuration's options. Raises DataError: a file is malformed."""
    train, test = (
        [s for path in paths for s in open_sources(path, split, config.source, config.preprocess.modalities)]
        for paths, split in zip((scene.train, scene.test), scene.split, strict=True)
    )
    digest = hashlib.sha256("\n".join(source.fingerprint() for source in test).encode())
    return SceneData(_frames(train), _frames(test), digest.hexdigest())


def describe(scene: TableScene, data: SceneData) -> str:
    """Number of frames, and whether they are real or simulated, in one line."""
    counts = []
    for number, (what, frames) in enumerate((("training", data.train), ("test", data.test))):
        total, whole = sum(frames.values()), scene.official[number] if scene.official else None
        sequences = f" in {len(frames)} sequences" if len(frames) > 1 else ""
        if whole is not None and total < whole:
            counts.append(f"{total} of {whole} {what} frames")
        else:
            counts.append(f"{total} {what} frames{sequences}")
    text = f"{_origin(scene)}; {', '.join(counts)}"
    if " of " in "".join(counts):
        text += ". A SUBSET: its split is that of its files, and may be within one sequence; not the paper's test"
    return text


def _origin(scene: TableScene) -> str:
    if scene.simulated:
        return "SIMULATED (`vmloc simulate`)"
    return "bags, not of `vmloc simulate`" if scene.kind == "bags" else f"REAL ({scene.kind})"


def _frames(sources: Sequence[Source]) -> dict[str, int]:
    return {source.name: len(source) for source in sources}


def _seven_scenes(folder: Path, official: tuple[int, int]) -> TableScene:
    name = folder.name
    paths = (folder,)
    return TableScene(
        name, "7scenes", "seven_scenes.yaml", paths, paths, ("train", "test"), {name: None}, official=official
    )


def _robotcar(root: Path, name: str) -> TableScene:
    """Raises DataError: training sequences are missing, or all test sequences."""
    train = select_sequences(root, "train", name)
    test = select_sequences(root, "test", name, allow_missing=True)
    rows = {row: sequence for row, sequence in _ROBOTCAR[name].items() if is_sequence(root / sequence)}
    settings = (f"source.robotcar.scene={name}",)
    split, regions = ("train", "test"), round(_ROAD_M[name] / 50)
    paths = tuple(train), tuple(test)
    return TableScene(name, "robotcar", "robotcar.yaml", *paths, split, rows, settings, regions=regions)


def _bags(folder: Path) -> TableScene:
    name = folder.name
    bags = [path for part in ("train", "test") for path in sorted((folder / part).iterdir()) if is_bag(path)]
    simulated = all(_is_simulated(bag) for bag in bags)
    train, test = (folder / "train",), (folder / "test",)
    # The folders are the split: options must not split the bags again.
    return TableScene(name, "bags", "bags.yaml", train, test, ("all", "all"), {name: None}, simulated=simulated)


def _has_bags(folder: Path) -> bool:
    return folder.is_dir() and any(is_bag(child) for child in folder.iterdir())


def _is_simulated(bag: Path) -> bool:
    from training.simulation.traversal import is_traversal  # brings the ray caster

    try:
        values: Any = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        topics = [entry["topic_metadata"]["name"] for entry in values["topics_with_message_count"]]
        return is_traversal(int(values["starting_time"]["nanoseconds_since_epoch"]), topics)
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        yaml.YAMLError,
    ):  # a bag of another kind; opening it reports errors
        return False
