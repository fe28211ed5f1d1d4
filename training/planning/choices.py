# SPDX-License-Identifier: Apache-2.0
"""Single choices of a plan, each with its reason; settings come from the configurations in ``config/train``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from training.data.coverage import known_views
from training.data.splits import FEWEST, split_folds
from training.survey.facts import LidarModel, Survey
from training.survey.survey import sensors_of
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.resources import share_path

ROAD_PER_REGION_M = 50.0
_ONE_REGION_M = 200.0  # dense_street.yaml's loop of 150 m needs no regions
_BLOCKS = (100, 75, 50, 30)  # frames; long ones first, and shorter ones only where places were visited more than once
_KNOWN_SHARE = 0.2  # of the frames, whose views other blocks, or another pass, must show
FOLDS = 3
FEW_FOLDS = 2  # where every fold trains all of a network
_USUAL_LIDAR = {"rows": 32, "columns": 720}
_SAFE_DEG = 0.1


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision of a plan.

    Attributes:
        topic: a word.
        text: what was chosen, and why, in a line.
    """

    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class System:
    """Which system, with which sensors, by which file of ``config/train``.

    Attributes:
        steps: optimizer steps of that file's training, where its data are larger or smaller than others; 0: its epochs.
    """

    name: str
    modalities: tuple[str, ...]
    file: str
    steps: int
    choices: tuple[Choice, ...]


def shipped(file: str) -> dict[str, Any]:
    """The settings of a file of ``config/train``."""
    values = yaml.safe_load(share_path("config", "train", file).read_text())
    assert isinstance(values, dict), f"{file} ships with the package"
    return values


def choose_system(found: Survey, gpu: bool) -> System:
    """System and sensors. Raises DataError: no system can use the recordings."""
    usable = sensors_of(found)
    ranged = LIDAR if LIDAR in usable else DEPTH if DEPTH in usable else None
    unused = [_unused(name, found, usable, ranged) for name in found.modalities if name not in (IMAGE, ranged)]
    lost = [] if IMAGE in usable or IMAGE not in found.modalities else [_unused(IMAGE, found, usable, ranged)]
    notes = [Choice("not used", text) for text in unused]
    if ranged is None:
        return _without_range(found, usable, gpu, notes)
    modalities = (IMAGE, ranged) if IMAGE in usable else (ranged,)
    name = "vmloc_dense" if len(modalities) == 2 else "dense_lidar"
    file = "dense_street.yaml" if ranged == LIDAR else "dense_rgbd.yaml"
    measured = {
        (IMAGE, LIDAR): "docs/dense.md has 0.01 m, 0.1 deg for 18 simulated drives; real lidars were not measured",
        (LIDAR,): "docs/dense.md has 0.01 m, 0.1 deg for 18 simulated drives; real lidars were not measured",
        (IMAGE, DEPTH): "docs/dense.md has 0.02 m, 0.8 deg in a real kitchen where views overlap",
        (DEPTH,): "docs/results.md has 0.04 m, 1.7 deg in a real kitchen where views overlap",
    }[modalities]
    words = " and ".join(modalities)
    why = f"{name} with {words}: measured distances give centimetres, regression decimetres ({measured})"
    notes += [Choice("not used", text) for text in lost]
    return System(name, modalities, file, 1020 if ranged == LIDAR else 0, (Choice("system", why), *notes))


def _without_range(found: Survey, usable: Sequence[str], gpu: bool, notes: Sequence[Choice]) -> System:
    """Regression: the camera alone, or sensors whose mounts or cameras are not known."""
    file = "seven_scenes.yaml" if gpu else "seven_scenes_cpu.yaml"
    sensors = tuple(name for name in found.modalities if name != DEPTH or LIDAR not in found.modalities)
    if sensors == (IMAGE,):
        text = (
            "image_vmloc with the camera alone: without measured distances expect decimetres and several degrees "
            "indoors (docs/results.md: 0.11 m, 9 deg in a real kitchen, where dense_image has 0.24 m, 4.7 deg), "
            "metres on a street; record depth or lidar, too, for centimetres"
        )
        return System("image_vmloc", sensors, file, 0, (Choice("system", text), *notes))
    name = "vmloc" if len(sensors) == 2 else "depth_vmloc"
    missing = ", ".join(sorted(set(found.modalities) - set(usable)))
    text = (
        f"{name} with {' and '.join(sensors)}, which needs neither transforms nor camera matrix: expect decimetres to "
        f"metres. Dense systems give centimetres, but need to know where the sensor of {missing} is mounted "
        "(/tf_static, or --set source.mounts.NAME=[x,y,z,roll,pitch,yaw]) and, for depth, the camera info"
    )
    return System(name, sensors, file, 0, (Choice("system", text),))


def _unused(name: str, found: Survey, usable: Sequence[str], ranged: str | None) -> str:
    if name in usable:
        return f"{name}: the {ranged} measures farther, and systems with three sensors are not tested"
    if name not in found.mounted:
        return (
            f"{name}: where it is mounted on {found.body_frame} is not known; record /tf_static, or give --set "
            f"source.mounts.{name}=[x,y,z,roll,pitch,yaw]"
        )
    return f"{name}: its camera matrix is not known; record the camera info topic"


# --- lidar -----------------------------------------------------------------------------------------------------------


def cylinder(lidar: LidarModel) -> tuple[dict[str, Any], str]:
    """``preprocess.cylinder`` for a lidar, and the reason.

    Rows are the rings, with half a spacing beyond the outermost ones, as of ``dense_street.yaml``.
    """
    low, high = lidar.elevation_deg
    rows = lidar.rings or _USUAL_LIDAR["rows"]
    margin = (high - low) / (rows - 1) / 2 if lidar.rings > 1 else _SAFE_DEG
    left, right = lidar.azimuth_deg
    wanted = min(_USUAL_LIDAR["columns"] * (right - left) / 360, lidar.columns if lidar.rings else math.inf)
    columns = max(64, 8 * round(wanted / 8))
    values = {
        "rows": rows,
        "columns": columns,
        "elevation_min_deg": round(max(-90.0, low - margin - 0.01), 2),
        "elevation_max_deg": round(min(90.0, high + margin + 0.01), 2),
        "azimuth_min_deg": left,
        "azimuth_max_deg": right,
    }
    seen = f"{lidar.rings} rings were measured" if lidar.rings else "no rings were found (moved or fused clouds)"
    return (
        values,
        f"{rows} x {columns} cells from {low:.1f} to {high:.1f} deg: {seen}, half a spacing added at the edges",
    )


def lidar_ranges(lidar: LidarModel, usual: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Ranges to which a lidar's measurements are clipped; those of the usual settings where they fit.

    Args:
        usual: section ``preprocess`` of the configuration that is built upon.
    """
    far = float(usual["lidar_range_m"][1])
    if not 0.5 * far <= lidar.far_m <= 1.05 * far:
        far = min(100.0, 10.0 * math.ceil(lidar.far_m / 10))
    low, high = usual["lidar_height_m"]
    low, high = min(low, math.floor(lidar.height_m[0])), max(high, math.ceil(lidar.height_m[1]))
    values: dict[str, Any] = {"lidar_range_m": [0.0, far], "lidar_height_m": [float(low), float(high)]}
    if lidar.intensity and not 60 <= lidar.intensity <= 300:
        values["lidar_intensity"] = [0.0, float(np.format_float_positional(lidar.intensity, 2, fractional=False))]
    return values, f"ranges up to {far:.0f} m, as 99.5 % are within {lidar.far_m:.1f} m; heights {low:g} to {high:g} m"


# --- map and folds ---------------------------------------------------------------------------------------------------


def regions(road_m: float) -> tuple[int, str]:
    """Number of regions, and the reason."""
    if road_m <= _ONE_REGION_M:
        return 1, f"1: {road_m:.0f} m of road need no regions"
    count = round(road_m / ROAD_PER_REGION_M)
    return count, f"{count}: one for every {ROAD_PER_REGION_M:.0f} m of {road_m:.0f} m of road"


@dataclass(frozen=True, slots=True)
class FoldChoice:
    """Section ``validation``, the number of frames that the folds predict, and the reason."""

    values: dict[str, Any]
    held_out: int
    text: str


def choose_folds(poses: Sequence[Pose], share: float, count: int = FOLDS) -> FoldChoice:
    """Folds with the longest blocks whose held-out views other blocks also show.

    Args:
        poses: of the training frames.
        share: of the views that were recorded more than once, for the reason.
        count: of the folds.
    """
    best = (0, 0)
    for block in _BLOCKS if share >= _KNOWN_SHARE else _BLOCKS[:1]:
        try:
            folds = split_folds(len(poses), block, count)
        except DataError:
            continue
        known = 0
        for train, held_out in folds:
            near = known_views([poses[i] for i in train.tolist()], [poses[i] for i in held_out.tolist()])
            known += int(near.sum())
        if known >= max(FEWEST, _KNOWN_SHARE * len(poses)):
            text = (
                f"{count} folds of blocks of {block} frames, no extra drive needed: of {len(poses)} frames {known} "
                "show views that other blocks show; errors, covariance and confidence are fitted to these"
            )
            return FoldChoice({"folds": count, "block": block}, known, text)
        best = max(best, (known, block))
    text = (
        f"no folds: only {share:.0%} of the views were recorded more than once, and at best {best[0]} held-out frames "
        "show what others show. Every tenth block of 20 frames is held out: errors will look worse than they are, and "
        "there is no confidence, so that the node cannot tell when it is lost. Record every place twice, or give "
        "--val-data"
    )
    return FoldChoice({"folds": 0, "every": 10, "block": 20}, 0, text)
