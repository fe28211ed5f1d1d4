# SPDX-License-Identifier: Apache-2.0
"""Run the robot's own localizer over a source and report its errors."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from training.metrics import PoseErrors, pose_errors
from training.plots import save_trajectory_plot
from training.sources import Source
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.files import write_aside
from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Estimates with their truth, in time order."""

    truth: list[Pose]
    estimates: list[Estimate]

    @property
    def errors(self) -> PoseErrors:
        return pose_errors(self.truth, [estimate.map_from_body for estimate in self.estimates])


def evaluate(localizer: Localizer, sources: Sequence[Source], progress: bool = True) -> Evaluation:
    """Localize every frame of the sources.

    Raises:
        DataError: a source's poses are of another body than the checkpoint's, or there are no frames.
    """
    truth: list[Pose] = []
    estimates: list[Estimate] = []
    for source in sources:
        if source.body_frame != localizer.body_frame:
            raise DataError(
                f"{source.name} has poses of {source.body_frame!r}, the checkpoint predicts {localizer.body_frame!r}; "
                "their difference would be no localization error"
            )
        if source.map_frame != localizer.map_frame:
            logger.warning(
                "%s has poses in %s, the checkpoint in %s", source.name, source.map_frame, localizer.map_frame
            )
        for sample in tqdm(source, total=len(source), desc=source.name, unit="frame", disable=not progress):
            truth.append(sample.map_from_body)
            estimates.append(localizer.localize(sample.frame))
    if not estimates:
        raise DataError("there is no frame to evaluate")
    return Evaluation(truth, estimates)


def write_results(evaluation: Evaluation, folder: Path, title: str) -> None:
    """Write ``metrics.json``, ``errors.csv``, TUM files ``estimate.tum`` and ``truth.tum`` and ``trajectory.png``."""
    stamps = [estimate.stamp_ns for estimate in evaluation.estimates]
    poses = [estimate.map_from_body for estimate in evaluation.estimates]
    errors = evaluation.errors
    with write_aside(folder / "metrics.json") as path:
        path.write_text(json.dumps(errors.summary(), indent=2) + "\n")
    with write_aside(folder / "errors.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stamp_ns", "position_m", "rotation_deg"])
        writer.writerows(zip(stamps, errors.position_m, errors.rotation_deg, strict=True))
    write_tum(folder / "estimate.tum", stamps, poses)
    write_tum(folder / "truth.tum", stamps, evaluation.truth)
    save_trajectory_plot(folder / "trajectory.png", evaluation.truth, poses, title)


def write_tum(file: Path, stamps_ns: Sequence[int], poses: Sequence[Pose]) -> None:
    """A trajectory in the TUM format: ``stamp_s tx ty tz qx qy qz qw`` per line."""
    with write_aside(file) as path, path.open("w") as text:
        for stamp, pose in zip(stamps_ns, poses, strict=True):
            w, x, y, z = pose.quaternion_wxyz
            px, py, pz = pose.position_m
            # Integer arithmetic: a float of seconds since 1970 holds no nanoseconds.
            seconds, nanoseconds = divmod(stamp, 1_000_000_000)
            text.write(f"{seconds}.{nanoseconds:09d} {px:.6f} {py:.6f} {pz:.6f} {x:.9f} {y:.9f} {z:.9f} {w:.9f}\n")
