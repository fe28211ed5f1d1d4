# SPDX-License-Identifier: Apache-2.0
"""A picture of what a source holds, so that a wrong topic or extrinsic is seen before training and not after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.output import write_figure
from training.sources.base import Source
from training.sources.factory import announce, open_with_every_modality
from training.sources.options import SourceOptions
from vmloc_ros.core.cameras import undistorted
from vmloc_ros.core.frame import IMAGE, Frame, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.projection import RANGE, VALIDITY, CylindricalConfig, cylindrical_projection

logger = logging.getLogger(__name__)

_CYLINDER = CylindricalConfig(rows=32, columns=512, elevation_min_deg=-25.0, elevation_max_deg=15.0)


def show(data: Sequence[Path], out: Path, *, split: str, options: SourceOptions, frames: int) -> dict[str, int]:
    """Write a contact sheet: some frames of every kind of measurement, and all poses.

    Args:
        frames: number of frames, evenly spread over all data.

    Returns:
        Frames by source.

    Raises:
        DataError: there is nothing to show.
        OutputError: the picture cannot be written.
    """
    sources = [source for path in data for source in _open(path, split, options)]
    announce(sources)
    chosen = _choose(sources, frames)
    chosen = [replace(sample, frame=undistorted(sample.frame)) for sample in chosen]
    panels = _panels([sample.frame for sample in chosen])
    figure = Figure(figsize=(3.4 * len(chosen), 2.6 * len(panels) + 5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2.6 * len(panels), 5])
    grid = above.subplots(len(panels), len(chosen), squeeze=False)
    for row, (title, draw) in zip(grid, panels.items(), strict=True):
        for axes, sample in zip(row, chosen, strict=True):
            draw(axes, sample.frame)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(title)
    for number, (axes, sample) in enumerate(zip(grid[0], chosen, strict=True), start=1):
        axes.set_title(f"{number}: {sample.frame.stamp_ns / 1e9:.2f} s", fontsize="small")
    _draw_poses(below.subplots(), sources, chosen)
    write_figure(out, figure)
    return {source.name: len(source) for source in sources}


def _open(path: Path, split: str, options: SourceOptions) -> list[Source]:
    """Sources with every modality that they have."""
    sources, problems = open_with_every_modality(path, split, options)
    for problem in problems:
        logger.info("not shown: %s", problem)
    return sources


def _choose(sources: Sequence[Source], count: int) -> list[Sample]:
    """Samples evenly spread over the sources' frames; each source is read no farther than needed."""
    starts = np.cumsum([0, *(len(source) for source in sources)])
    wanted = np.unique(np.linspace(0, starts[-1] - 1, count).round().astype(int))
    chosen: list[Sample] = []
    for source, start in zip(sources, starts, strict=False):
        rows = {int(row - start) for row in wanted if start <= row < start + len(source)}
        if rows:
            for row, sample in enumerate(source):
                if row in rows:
                    chosen.append(sample)
                if row >= max(rows):
                    break
    return chosen


def _panels(frames: Sequence[Frame]) -> dict[str, Callable[[Axes, Frame], None]]:
    """The rows of the sheet: those that some frame can fill."""
    panels: dict[str, tuple[Callable[[Axes, Frame], None], Callable[[Frame], bool]]] = {
        "image": (_draw_image, lambda frame: frame.image is not None),
        "depth": (_draw_depth, lambda frame: frame.depth_m is not None),
        "lidar range": (_draw_range, lambda frame: frame.cloud is not None),
        "lidar on image": (_draw_overlay, _can_overlay),
    }
    return {title: draw for title, (draw, fits) in panels.items() if any(fits(frame) for frame in frames)}


def _can_overlay(frame: Frame) -> bool:
    return None not in (frame.camera, frame.camera_from_lidar) and frame.cloud is not None and frame.image is not None


def _draw_image(axes: Axes, frame: Frame) -> None:
    if frame.image is not None:
        axes.imshow(frame.image)


def _draw_depth(axes: Axes, frame: Frame) -> None:
    if frame.depth_m is not None:
        measured = np.ma.masked_equal(frame.depth_m, 0)
        picture = axes.imshow(measured, cmap="turbo")
        axes.figure.colorbar(picture, ax=axes, label="m")


def _draw_range(axes: Axes, frame: Frame) -> None:
    """The cylindrical range image, forwards in the middle, left of the sensor on the left."""
    if frame.cloud is not None:
        points = torch.from_numpy(np.ascontiguousarray(frame.cloud.xyz_m, np.float32))[None]
        projected = cylindrical_projection(points, None, _CYLINDER)[0].numpy()
        measured = np.ma.masked_where(projected[VALIDITY] == 0, projected[RANGE])
        top = float(np.percentile(measured.compressed(), 95)) if projected[VALIDITY].any() else 1.0
        axes.imshow(measured, cmap="turbo", aspect="auto", vmin=0, vmax=top, interpolation="nearest")


def _draw_overlay(axes: Axes, frame: Frame) -> None:
    """The cloud's points in the image, coloured by depth: edges of both must meet."""
    if not _can_overlay(frame):
        return
    assert frame.image is not None and frame.cloud is not None  # noqa: PT018 (for the type checker)
    assert frame.camera is not None and frame.camera_from_lidar is not None  # noqa: PT018
    xyz = frame.cloud.xyz_m[np.isfinite(frame.cloud.xyz_m).all(axis=1) & frame.cloud.xyz_m.any(axis=1)]
    x, y, z = frame.camera_from_lidar.transform(xyz).T
    camera, ahead = frame.camera, z > 0.1
    u = camera.fx * x[ahead] / z[ahead] + camera.cx
    v = camera.fy * y[ahead] / z[ahead] + camera.cy
    inside = (np.abs(u - camera.width / 2) < camera.width / 2) & (np.abs(v - camera.height / 2) < camera.height / 2)
    axes.imshow(frame.image, alpha=0.6, extent=(-0.5, camera.width - 0.5, camera.height - 0.5, -0.5))
    axes.scatter(u[inside], v[inside], c=z[ahead][inside], s=1.5, cmap="turbo", linewidths=0)
    axes.set(xlim=(-0.5, camera.width - 0.5), ylim=(camera.height - 0.5, -0.5))


def _draw_poses(axes: Axes, sources: Sequence[Source], chosen: Sequence[Sample]) -> None:
    """All poses along the two axes of greatest extent, and where each chosen frame looks."""
    positions = [np.stack([pose.position_m for pose in source.poses()]) for source in sources]
    first, second = sorted(np.argsort(np.ptp(np.concatenate(positions), axis=0))[-2:])
    for source, points in zip(sources, positions, strict=True):
        axes.plot(points[:, first], points[:, second], ".", ms=2, label=source.name)
    forwards, meaning = _forwards(sources[0])
    length = 0.06 * max(np.ptp(np.concatenate(positions), axis=0).max(), 0.1)
    for number, sample in enumerate(chosen, start=1):
        _draw_arrow(axes, sample.map_from_body, number, (first, second), forwards, length)
    axes.set(xlabel=f"{'xyz'[first]} (m)", ylabel=f"{'xyz'[second]} (m)", aspect="equal")
    axes.set_title(f"{_whose(sources[0])} in {sources[0].map_frame};\narrows: {meaning}")
    if len(sources) <= 10:
        axes.legend(fontsize="small")


def _whose(source: Source) -> str:
    """Whose poses a source has, and whether that is certain."""
    return f"poses of {source.body_frame}{' (see the warning)' if getattr(source, 'doubts', ()) else ''}"


def _forwards(source: Source) -> tuple[NDArray[np.float64], str]:
    """Direction ``(3,)`` of the arrows in the body frame, and its meaning: where the camera looks, or the x axis."""
    if (mount := source.mounts.get(IMAGE)) is not None:
        return mount.rotation[:, 2], "where the camera looks in the frames above"
    unknown = ", as where the camera is mounted is not known" if IMAGE in source.modalities else ""
    return np.array([1.0, 0.0, 0.0]), f"x axis of {source.body_frame}{unknown}"


def _draw_arrow(
    axes: Axes, pose: Pose, number: int, plane: tuple[int, int], forwards: NDArray[np.float64], length: float
) -> None:
    start = pose.position_m[list(plane)]
    end = start + length * (pose.rotation @ forwards)[list(plane)]
    axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": "k"})
    axes.annotate(str(number), start, textcoords="offset points", xytext=(4, 4))
