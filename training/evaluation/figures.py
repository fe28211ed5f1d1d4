# SPDX-License-Identifier: Apache-2.0
"""Figures of results as PNG files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.evaluation.metrics import PoseErrors, pose_errors
from training.evaluation.plots import plot_calibration, plot_error_cdf, plot_error_map, plot_errors, plot_trajectory
from training.evaluation.trajectory import Trajectory
from training.output import write_figure
from vmloc_ros.core.frame import IMAGE, Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

Picture = NDArray[np.generic]


def save_trajectory_plot(
    file: Path,
    truth: Sequence[Pose],
    estimates: Sequence[Pose],
    title: str,
    map_points_m: NDArray[np.float64] | None = None,
) -> None:
    """Save the position errors on a map and, below it, all errors over the frames."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[3, 1])
    plot_error_map(above, [(truth, estimates)], map_points_m)
    plot_errors(below, pose_errors(truth, estimates))
    figure.suptitle(title)
    write_figure(file, figure)


def save_track_plot(file: Path, runs: Sequence[Trajectory], times_s: Sequence[NDArray[np.float64]], title: str) -> None:
    """Save the trajectory as in VMLoc's Figure 3, the position errors on a map, and below both the errors over time.

    Args:
        times_s: ``(N,)`` of the frames of each run.
    """
    figure = Figure(layout="constrained")
    panels = figure.subplot_mosaic([["trajectory", "map"], ["errors", "errors"]])
    plot_trajectory(panels["trajectory"], runs)
    plot_error_map(panels["map"], runs)
    (left, right), (bottom, top) = panels["map"].get_xlim(), panels["map"].get_ylim()
    height = float(np.clip(6 * (top - bottom) / (right - left), 2.5, 9))
    figure.set_size_inches(14, height + 3.5)
    panels["map"].get_gridspec().set_height_ratios([height, 2.5])
    errors = [pose_errors(*run) for run in runs]
    interrupted = PoseErrors(
        _with_gaps([error.position_m for error in errors]), _with_gaps([error.rotation_deg for error in errors])
    )
    plot_errors(panels["errors"], interrupted, _with_gaps(times_s))
    figure.suptitle(title)
    write_figure(file, figure)


def save_error_cdf(file: Path, errors: Mapping[str, PoseErrors], title: str) -> None:
    """Save cumulative distributions of position and rotation errors, a curve for each name; the last one is bold."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_error_cdf(left, {name: error.position_m for name, error in errors.items()}, "position error (m)")
    plot_error_cdf(right, {name: error.rotation_deg for name, error in errors.items()}, "rotation error (deg)")
    figure.suptitle(title)
    write_figure(file, figure)


def save_calibration_plot(file: Path, levels: Mapping[str, NDArray[np.float64]], title: str) -> None:
    """Save the calibration plot, see :func:`training.evaluation.plots.plot_calibration`."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    plot_calibration(axes, levels)
    axes.set_title(textwrap.fill(title, 60), fontsize="medium")
    write_figure(file, figure)


def save_corruption_plot(
    file: Path, examples: Sequence[tuple[Frame, Frame]], preprocess: PreprocessConfig, title: str
) -> None:
    """Save the network's input before and after the corruption as in VMLoc's Figure 4, a column for each frame.

    Args:
        examples: frames that keep at least one of the model's modalities.
    """
    preprocessor = Preprocessor(preprocess)
    columns = [[_input_pictures(frame, preprocessor) for frame in pair] for pair in examples]
    rows = [(name, side) for name in preprocess.modalities for side in (0, 1)]
    known = {name: [clean[name] for clean, _ in columns if name in clean] for name in preprocess.modalities}
    heights = [max((_box_aspect(picture) for picture in known[name]), default=0.5) for name, _ in rows]
    figure = Figure(figsize=(3.2 * len(columns) + 0.6, 3.2 * sum(heights) + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for line, (name, side) in zip(grid, rows, strict=True):
        top_m = _top_m(known[name])
        for axes, pictures in zip(line, columns, strict=True):
            _draw_input(axes, pictures[side].get(name), pictures[0].get(name), top_m)
        metres = "" if name == IMAGE else f"\n(0 to {top_m:.1f} m)"
        line[0].set_ylabel(f"{name}, {('clean', 'corrupted')[side]}{metres}")
    for axes, (frame, _) in zip(grid[0], examples, strict=True):
        axes.set_title(f"frame at {frame.stamp_ns / 1e9:.2f} s", fontsize="small")
    figure.suptitle(title)
    write_figure(file, figure)


def _with_gaps(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Concatenate the parts with NaN between them, which interrupts a line."""
    return np.concatenate([np.append(part, np.nan) for part in parts])[:-1]


def _input_pictures(frame: Frame, preprocessor: Preprocessor) -> dict[str, Picture]:
    """The network's input of each modality: ``(H, W, 3)`` uint8, or metres ``(H, W)``, masked where unmeasured."""
    pictures: dict[str, Picture] = {}
    for name, tensor in preprocessor.crop(preprocessor.prepare(frame)).items():
        channels = tensor.numpy()
        measured = np.ma.masked_where(channels[-1] == 0, channels[0])
        pictures[name] = channels.transpose(1, 2, 0) if name == IMAGE else measured
    return pictures


def _top_m(pictures: Sequence[Picture]) -> float:
    """Upper end of the colour scale: the 98th percentile of all measurements."""
    measured = np.concatenate([np.ma.compressed(picture) for picture in pictures]) if pictures else np.array([])
    return float(np.percentile(measured, 98)) if len(measured) else 1.0


def _box_aspect(picture: Picture) -> float:
    """Height by width; a range image, which is a narrow strip, is drawn higher."""
    return max(picture.shape[0] / picture.shape[1], 1 / 3)


def _draw_input(axes: Axes, picture: Picture | None, clean: Picture | None, top_m: float) -> None:
    """Draw a picture with the aspect ratio of the clean one, or the note that it is missing."""
    axes.set(xticks=[], yticks=[], facecolor="0.85")
    if clean is not None:
        axes.set_box_aspect(_box_aspect(clean))
    if picture is None:
        axes.text(0.5, 0.5, "missing", ha="center", va="center", transform=axes.transAxes)
    else:
        axes.imshow(picture, cmap="turbo", vmin=0, vmax=top_m, interpolation="nearest", aspect="auto")
