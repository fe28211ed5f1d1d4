# SPDX-License-Identifier: Apache-2.0
"""Plots of results; every function draws into an ``Axes``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from training.evaluation.consistency import COVERAGES
from training.evaluation.metrics import PoseErrors
from training.evaluation.trajectory import Trajectory

Array = NDArray[np.float64]

_FLOOR = 1e-3  # smaller errors, zero among them, are drawn at this value on a logarithmic scale
_MOST_NAMES = 10  # curves that are named in a legend


def plot_trajectory(axes: Axes, runs: Sequence[Trajectory]) -> None:
    """Plot trajectories from above, as in VMLoc's Figure 3: truth black, estimates red, a yellow star at the start.

    Args:
        runs: parts of a trajectory; no line joins one to the next.
    """
    truth, positions = _positions(runs)
    plane = _plane(truth)
    for part, (true_poses, estimated) in enumerate(runs):
        for poses, style in ((true_poses, "k-"), (estimated, "r-")):
            path = np.stack([pose.position_m for pose in poses])[:, plane]
            label = {"k-": "ground truth", "r-": "estimate"}[style] if part == 0 else None
            axes.plot(path[:, 0], path[:, 1], style, linewidth=1, label=label)
    outside = _show_from_above(axes, truth, positions, plane)
    if outside:
        axes.plot([], [], " ", label=f"{outside} of {len(positions)} estimates are outside")
    _mark_start(axes, truth, plane)
    _legend_above(axes)


def plot_error_map(axes: Axes, runs: Sequence[Trajectory], map_points_m: Array | None = None) -> None:
    """Plot from above the truth as a line, and estimates coloured by position error and joined to their truth.

    Args:
        runs: as for :func:`plot_trajectory`.
        map_points_m: ``(N, 3)`` points of the map drawn underneath.
    """
    truth, positions = _positions(runs)
    plane = _plane(truth)
    if map_points_m is not None:
        points = map_points_m[:, plane]
        axes.scatter(points[:, 0], points[:, 1], s=0.3, c="0.75", linewidths=0, rasterized=True)
    pairs = np.stack([truth, positions], axis=1)[:, :, plane]
    axes.add_collection(LineCollection(list(pairs), colors="0.5", linewidths=0.5))
    for part, (true_poses, _) in enumerate(runs):
        path = np.stack([pose.position_m for pose in true_poses])[:, plane]
        axes.plot(path[:, 0], path[:, 1], "k-", linewidth=1.2, label=None if part else "ground truth")
    error = np.linalg.norm(positions - truth, axis=1)
    # A few gross errors would otherwise take up the whole colour scale.
    top = max(float(np.percentile(error, 95)), _FLOOR)
    x, y = positions[:, plane].T
    dots = axes.scatter(x, y, c=error, s=14, cmap="turbo", vmin=0, vmax=top, zorder=3, label="estimate")
    axes.figure.colorbar(dots, ax=axes, label="position error (m)", extend="max")
    _show_from_above(axes, truth, positions, plane)
    _mark_start(axes, truth, plane)
    _legend_above(axes)


def plot_errors(axes: Axes, errors: PoseErrors, times_s: ArrayLike | None = None) -> None:
    """Plot position and rotation error on a logarithmic scale; NaN interrupts the lines.

    Args:
        times_s: ``(N,)`` of the estimates; without, the axis counts frames.
    """
    x = np.arange(len(errors)) if times_s is None else np.asarray(times_s)
    for values, label, colour in (
        (errors.position_m, "position (m)", "tab:blue"),
        (errors.rotation_deg, "rotation (deg)", "tab:orange"),
    ):
        axes.semilogy(x, np.maximum(values, _FLOOR), color=colour, linewidth=1, label=label)
        axes.axhline(np.nanmedian(values), color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel="frame" if times_s is None else "time (s)", ylabel="error (dotted: median)")
    _label_plainly(axes.yaxis)
    axes.grid(True, which="major", alpha=0.3)
    axes.margins(x=0.01)
    axes.legend(fontsize="small")


def plot_error_cdf(axes: Axes, errors: Mapping[str, Array], label: str) -> None:
    """Share of frames with at most a certain error, a curve for each name; the last one is drawn boldly.

    Args:
        errors: ``(N,)`` values by name.
        label: of the axis, with the unit.
    """
    few = len(errors) <= _MOST_NAMES
    for number, (name, values) in enumerate(errors.items(), start=1):
        ordered = np.maximum(np.sort(values), _FLOOR)
        last = number == len(errors)
        colour, width = ("k", 2.0) if last else (f"C{number - 1}" if few else "0.6", 1.0)
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        shown = name if few or last else f"{len(errors) - 1} others" if number == 1 else None
        axes.step(ordered, share, where="post", color=colour, linewidth=width, label=shown)
    axes.set(xscale="log", xlabel=label, ylabel="share of frames", ylim=(0, 1))
    _label_plainly(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(True, which="both", alpha=0.3)
    if len(errors) > 1:
        axes.legend(loc="upper left", fontsize="small")


def plot_calibration(axes: Axes, levels: Mapping[str, Array]) -> None:
    """Plot the share of true poses inside the covariances' ellipsoids against the nominal one, marked at 50, 90, 95 %.

    Args:
        levels: by name, see :func:`training.evaluation.consistency.confidence_levels`.
    """
    nominal = np.linspace(0, 1, 201)
    axes.plot([0, 1], [0, 1], "k--", linewidth=1, label="consistent covariances")
    for number, (name, values) in enumerate(levels.items()):
        observed, marked = (np.mean(values[:, None] <= wanted, axis=0) for wanted in (nominal, np.array(COVERAGES)))
        axes.plot(nominal, observed, color=f"C{number}", label=name)
        axes.plot(COVERAGES, marked, "o", color=f"C{number}", markersize=4)
    note = {"style": "italic", "color": "0.4", "bbox": {"color": "w", "alpha": 0.7, "pad": 1}}
    axes.text(0.97, 0.05, "covariance too small", ha="right", **note)
    axes.text(0.03, 0.72, "covariance too large", ha="left", **note)
    axes.set(
        xlabel="probability of the ellipsoid",
        ylabel="share of true poses inside",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect=1,
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(True, alpha=0.3)
    axes.legend(loc="upper left", fontsize="small")


def _legend_above(axes: Axes) -> None:
    """Legend above the axes, where it hides no estimate."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize="small", frameon=False)


def _label_plainly(axis: Axis) -> None:
    """A logarithmic axis with 0.1, 0.2, 0.5, 1 instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _positions(runs: Sequence[Trajectory]) -> tuple[Array, Array]:
    """True and estimated positions ``(N, 3)`` of all runs."""
    truth, estimates = (np.stack([pose.position_m for run in runs for pose in run[side]]) for side in (0, 1))
    return truth, estimates


def _plane(truth: Array) -> list[int]:
    """The two axes of greatest extent, in order: in a camera's world frame, y may point down."""
    return sorted(np.argsort(np.ptp(truth, axis=0))[-2:].tolist())


def _show_from_above(axes: Axes, truth: Array, positions: Array, plane: list[int]) -> int:
    """Set limits around the truth and the estimates without their outer tenth; return how many are outside."""
    bulk = np.percentile(positions, [5, 95], axis=0)
    low = np.minimum(truth.min(axis=0), bulk[0])[plane]
    high = np.maximum(truth.max(axis=0), bulk[1])[plane]
    margin = 0.15 * (high - low).max() + 0.1
    low, high = low - margin, high + margin
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set(xlabel=f"{'xyz'[plane[0]]} (m)", ylabel=f"{'xyz'[plane[1]]} (m)")
    seen = np.all((positions[:, plane] >= low) & (positions[:, plane] <= high), axis=1)
    return int(np.count_nonzero(~seen))


def _mark_start(axes: Axes, truth: Array, plane: list[int]) -> None:
    x, y = truth[0, plane]
    axes.plot(x, y, "*", color="gold", ms=14, mec="k", zorder=4, label="start", linestyle="none")
