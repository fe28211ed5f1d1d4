# SPDX-License-Identifier: Apache-2.0
"""A dense checkpoint of an RGB-D camera on corrupted images and in unknown places, as a Markdown table.

python benchmarks/damaged_pictures.py CHECKPOINT SCENE [--foreign SCENE] [--stride 4]

SCENE is in 7-Scenes' layout. Every row is of the scene's test frames (or of all foreign ones): errors, median of the
solver's cues, and the area under the ROC curve of detecting these frames, among clean ones, by one cue alone.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from training.config import checkpoint_source_options
from training.evaluation.metrics import area_under_roc, pose_errors
from training.sources import open_sources
from vmloc_ros.core.frame import Frame, Sample
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.progress import with_progress

# `Prediction.outlier_scores` of `DenseModel.locate`, or 1 - them
CUES = ("inliers", "residual", "on the map")
READ_NOISE = 0.02  # of full scale: noise of a dark image


def darker(share: float) -> Callable[[Frame], Frame]:
    """A share of the light, with the camera's gain at its limit."""

    def corrupt(frame: Frame) -> Frame:
        noise = np.random.default_rng(frame.stamp_ns).normal(0, READ_NOISE, frame.image.shape)
        return replace(frame, image=(255 * (frame.image / 255 * share ** (1 / 2.2) + noise)).clip(0, 255).astype("u1"))

    return corrupt


def blurred(pixels: int) -> Callable[[Frame], Frame]:
    """Horizontal motion blur."""
    kernel = np.full((1, pixels), 1 / pixels, np.float32)
    return lambda frame: replace(frame, image=cv2.filter2D(frame.image, -1, kernel))


def half_covered(depth_too: bool) -> Callable[[Frame], Frame]:
    """The left half of the image, and of the depth image, without measurements."""

    def corrupt(frame: Frame) -> Frame:
        image, depth_m = frame.image.copy(), frame.depth_m.copy()
        image[:, : image.shape[1] // 2] = 0
        if depth_too:
            depth_m[:, : depth_m.shape[1] // 2] = 0
        return replace(frame, image=image, depth_m=depth_m)

    return corrupt


CORRUPTIONS: dict[str, Callable[[Frame], Frame]] = {
    "none": lambda frame: frame,
    "1/8 of the light": darker(1 / 8),
    "1/64 of the light": darker(1 / 64),
    "motion blur of 15 pixels": blurred(15),
    "motion blur of 41 pixels": blurred(41),
    "left half of the colour black": half_covered(False),
    "left half of both gone": half_covered(True),
}
SENSORS: dict[str, Callable[[Frame], Frame]] = {
    "both": lambda frame: frame,
    "colour": lambda frame: replace(frame, depth_m=None),
    "depth": lambda frame: replace(frame, image=None),
}


def measure(
    localizer: Localizer, samples: Iterable[Sample], change: Callable[[Frame], Frame]
) -> tuple[str, np.ndarray]:
    """Errors as cells of a table, and cues ``(N, 3)``, larger in clean frames."""
    truth, estimates, cues = [], [], []
    for sample in samples:
        batch = localizer.preprocess(change(sample.frame))
        with torch.inference_mode():
            prediction = localizer.model.locate(batch, localizer.header.pose_codec)
        estimates.append(localizer.estimate(0, localizer.present(batch), prediction).map_from_body)
        truth.append(sample.map_from_body)
        cues.append(np.array([1, 0, 1]) - prediction.outlier_scores[0])
    errors = pose_errors(truth, estimates).summary()
    median = f"{errors['median_position_m']:.3f} m, {errors['median_rotation_deg']:.2f} deg"
    return f"{len(estimates)} | {median} | {errors['p95_position_m']:.3f} m", np.array(cues)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--foreign", type=Path)
    parser.add_argument("--stride", type=int, default=4, help="use every STRIDE-th test frame")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # progress, where no terminal draws a bar
    localizer = Localizer.load(options.checkpoint, "cpu")

    def samples(path: Path, split: str, stride: int) -> list[Sample]:
        source_options = checkpoint_source_options(localizer.header, [f"source.stride={stride}"])
        return [x for source in open_sources(path, split, source_options, localizer.modalities) for x in source]

    known = samples(options.scene, "test", options.stride)
    rows = [(corruption, sensors, known) for corruption in CORRUPTIONS for sensors in SENSORS]
    if options.foreign:
        foreign = samples(options.foreign, "all", 1)
        rows += [("another place", sensors, foreign) for sensors in SENSORS]
    heads = [*CUES, *(f"area by {cue}" for cue in CUES)]
    print(f"| input | sensors | frames | median | 95 % | {' | '.join(heads)} |", "|---" * 11 + "|", sep="\n")
    clean: dict[str, np.ndarray] = {}
    for corruption, sensors, samples_of_row in with_progress(rows, len(rows), "Damaged pictures", "rows"):
        change = CORRUPTIONS.get(corruption, CORRUPTIONS["none"])
        errors, cues = measure(localizer, samples_of_row, lambda frame, c=change, s=sensors: SENSORS[s](c(frame)))
        clean.setdefault(sensors, cues)
        areas = [area_under_roc(a, b) for a, b in zip(clean[sensors].T, cues.T, strict=True)]
        medians = np.abs(np.median(cues, axis=0))
        values = " | ".join(f"{value:.2f}" for value in medians) + " | " + " | ".join(f"{area:.3f}" for area in areas)
        print(f"| {corruption} | {sensors} | {errors} | {values} |", flush=True)


if __name__ == "__main__":
    main()
