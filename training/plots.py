# SPDX-License-Identifier: Apache-2.0
"""Pictures of results; every function draws into an ``Axes`` given to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.metrics import pose_errors
from vmloc_ros.core.files import write_aside
from vmloc_ros.core.geometry import Pose


def plot_trajectory(
    axes: Axes, truth: Sequence[Pose], estimates: Sequence[Pose], map_points_m: NDArray[np.float64] | None = None
) -> None:
    """Seen from above along the two axes of greatest extent: truth as a line, estimates coloured by position error.

    Args:
        map_points_m: ``(N, 3)`` points of the map drawn underneath.
    """
    true_positions = np.stack([pose.position_m for pose in truth])
    positions = np.stack([pose.position_m for pose in estimates])
    first, second = sorted(np.argsort(np.ptp(true_positions, axis=0))[-2:])
    error = pose_errors(truth, estimates).position_m
    if map_points_m is not None:
        axes.scatter(map_points_m[:, first], map_points_m[:, second], s=0.3, c="0.75", linewidths=0, rasterized=True)
    pairs = np.stack([true_positions, positions], axis=1)[:, :, [first, second]]
    axes.add_collection(LineCollection(list(pairs), colors="0.5", linewidths=0.5))
    axes.plot(true_positions[:, first], true_positions[:, second], "k-", linewidth=1.2, label="ground truth")
    # A few wild errors shall not make all others look alike.
    top = max(float(np.percentile(error, 95)), 1e-3)
    dots = axes.scatter(
        positions[:, first],
        positions[:, second],
        c=error,
        s=14,
        cmap="turbo",
        vmin=0,
        vmax=top,
        zorder=3,
        label="estimate",
    )
    axes.plot(true_positions[0, first], true_positions[0, second], "*", color="gold", ms=14, mec="k", label="start")
    axes.figure.colorbar(dots, ax=axes, label="position error (m)", extend="max")
    axes.set(xlabel=f"{'xyz'[first]} (m)", ylabel=f"{'xyz'[second]} (m)", aspect="equal")
    margin = 0.15 * np.ptp(true_positions, axis=0).max() + 0.1
    for set_limits, axis in ((axes.set_xlim, first), (axes.set_ylim, second)):
        set_limits(true_positions[:, axis].min() - margin, true_positions[:, axis].max() + margin)
    axes.legend(loc="best", fontsize="small")


def plot_errors(axes: Axes, truth: Sequence[Pose], estimates: Sequence[Pose]) -> None:
    """Position and rotation error over the frames, on a logarithmic scale."""
    errors = pose_errors(truth, estimates)
    axes.semilogy(np.maximum(errors.position_m, 1e-3), color="tab:blue", linewidth=1, label="position (m)")
    axes.semilogy(np.maximum(errors.rotation_deg, 1e-3), color="tab:orange", linewidth=1, label="rotation (deg)")
    axes.axhline(np.median(errors.position_m), color="tab:blue", linestyle=":", linewidth=1)
    axes.axhline(np.median(errors.rotation_deg), color="tab:orange", linestyle=":", linewidth=1)
    axes.set(xlabel="frame", ylabel="error (dotted: median)")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize="small")


def save_trajectory_plot(
    file: Path,
    truth: Sequence[Pose],
    estimates: Sequence[Pose],
    title: str,
    map_points_m: NDArray[np.float64] | None = None,
) -> None:
    """A PNG with the trajectory and, below it, the errors."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no display, no pyplot state
    above, below = figure.subplots(2, 1, height_ratios=[3, 1])
    plot_trajectory(above, truth, estimates, map_points_m)
    plot_errors(below, truth, estimates)
    above.set_title(title)
    with write_aside(file) as path, path.open("wb") as stream:
        canvas.print_png(stream)
