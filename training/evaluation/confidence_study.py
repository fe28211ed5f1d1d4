# SPDX-License-Identifier: Apache-2.0
"""How well the confidence detects out-of-distribution frames (ROC), and how errors fall with coverage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray

from training.config import checkpoint_source_options
from training.evaluation.metrics import CONFIDENCE_LIMIT, PoseErrors, area_under_roc, pose_errors
from training.evaluation.out_of_distribution import out_of_distribution_frames
from training.output import markdown_table, write_csv, write_figure, write_text
from training.sources.base import Source
from training.sources.factory import announce, open_sources
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import IMAGE, Estimate, Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.progress import progress_bar

Array = NDArray[np.float64]

FALSE_ALARMS = (0.01, 0.05)
DROPPED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # shares of frames, the least confident ones
_FOREIGN_FRAMES = 100  # of each recording


@dataclass(frozen=True, slots=True, eq=False)
class Confidences:
    """Confidence of estimates.

    Attributes:
        nominal: ``(N,)`` of in-distribution frames.
        errors: of these N frames.
        outliers: ``(M,)`` of out-of-distribution frames, by kind.
    """

    nominal: Array
    errors: PoseErrors
    outliers: Mapping[str, Array]


def study(
    checkpoint: Path,
    data: Sequence[Path],
    *,
    foreign: Sequence[Path] = (),
    split: str = "test",
    frames: int = 1000,
    out: Path | None = None,
    overrides: list[str] | None = None,
    device: str = "auto",
    progress: bool = True,
) -> tuple[str, Path]:
    """Write ``confidence.md``, ``confidence.csv`` and ``roc.png``; return the text of the first and the folder.

    Args:
        data: drives in the map.
        foreign: recordings of other places.
        split: of ``data``, where it has splits; of ``foreign`` everything is used.
        frames: about how many of the data's frames are used, evenly spread.

    Raises:
        VmlocError: checkpoint, data or output are at fault, or the checkpoint holds no confidence.
    """
    localizer = Localizer.load(checkpoint, device)
    localizer.drop_outlier_sensors = False  # evaluate the estimate from all sensors, corrupted ones included
    if localizer.confidence is None:
        raise ConfigError(f"{checkpoint} was written without a confidence; add one with `vmloc calibrate`")
    sources = _open(localizer, data, split, overrides, frames, localizer.modalities)
    foreign_frames = [frame for path in foreign for frame in _foreign_frames(localizer, path, overrides)]
    found = _measure(localizer, sources, foreign_frames, progress)
    folder = out or Path("confidence") / checkpoint.stem
    title = f"Confidence of {localizer.header.model.name} ({checkpoint.name})"
    text = _text(title, found)
    write_text(folder / "confidence.md", text)
    write_csv(folder / "confidence.csv", _csv_rows(found))
    write_figure(folder / "roc.png", _figure(title, found))
    return text, folder


def detection_rate(nominal: ArrayLike, outliers: ArrayLike, false_alarms: float) -> float:
    """Share of outliers below the greatest limit that at most a share ``false_alarms`` of nominal frames is below.

    Args:
        nominal, outliers: confidence of frames.
    """
    ordered = np.sort(np.asarray(nominal, np.float64))
    limit = ordered[min(math.floor(false_alarms * len(ordered) + 1e-9), len(ordered) - 1)]
    return float(np.mean(np.asarray(outliers) < limit))


def risk_coverage(confidence: ArrayLike, errors: PoseErrors) -> list[tuple[float, PoseErrors]]:
    """Errors of the frames that are kept when each of the shares :data:`DROPPED`, the least confident, is dropped."""
    order = np.argsort(np.asarray(confidence), kind="stable")
    kept = [(share, order[math.floor(share * len(order)) :]) for share in DROPPED]
    return [(share, PoseErrors(errors.position_m[rows], errors.rotation_deg[rows])) for share, rows in kept]


def _measure(localizer: Localizer, sources: Sequence[Source], foreign: Sequence[Frame], progress: bool) -> Confidences:
    """Localize every frame and the out-of-distribution frames made from it.

    Raises:
        DataError: the confidence was fitted for the sensors of no frame.
    """
    truth: list[Pose] = []
    estimates: list[Estimate] = []
    outliers: dict[str, list[float]] = {}
    scale_m = localizer.header.pose_codec.scale_m
    with progress_bar(sum(map(len, sources)), "confidence", "frames", disable=not progress) as bar:
        for source in sources:
            samples = list(source)
            for number, sample in enumerate(samples):
                estimate = localizer.localize(sample.frame)
                if estimate.confidence is not None:
                    truth.append(sample.map_from_body)
                    estimates.append(estimate)
                for kind, frame in out_of_distribution_frames(samples, number, foreign, localizer.modalities, scale_m):
                    confidence = localizer.localize(frame).confidence
                    if confidence is not None:
                        outliers.setdefault(kind, []).append(confidence)
                bar.update()
    if not estimates:
        raise DataError("no frame of the data has sensors that the confidence was fitted for")
    return Confidences(
        np.array([estimate.confidence for estimate in estimates]),
        pose_errors(truth, [estimate.map_from_body for estimate in estimates]),
        {kind: np.array(values) for kind, values in outliers.items()},
    )


def _foreign_frames(localizer: Localizer, path: Path, overrides: list[str] | None) -> list[Frame]:
    """Frames of another place, with all of the model's sensors or, where a recording lacks one, with images alone."""
    try:
        sources = _open(localizer, [path], "all", overrides, _FOREIGN_FRAMES, localizer.modalities)
    except DataError:
        if IMAGE not in localizer.modalities:
            raise
        sources = _open(localizer, [path], "all", overrides, _FOREIGN_FRAMES, (IMAGE,))
    return [sample.frame for source in sources for sample in source]


def _open(
    localizer: Localizer,
    paths: Sequence[Path],
    split: str,
    overrides: list[str] | None,
    frames: int,
    modalities: tuple[str, ...],
) -> list[Source]:
    """Sources with a stride that leaves about as many frames as wanted, if they hold more."""
    header = localizer.header

    def sources(stride: list[str]) -> list[Source]:
        options = checkpoint_source_options(header, [*(overrides or []), *stride])
        return [x for path in paths for x in open_sources(path, split, options, modalities)]

    found = sources([])
    announce(found)
    every = math.ceil(sum(map(len, found)) / frames)
    if every <= 1:
        return found
    stride = checkpoint_source_options(header, overrides).stride
    return sources([f"source.stride={stride * every}"])


def _text(title: str, found: Confidences) -> str:
    below = np.mean(found.nominal < CONFIDENCE_LIMIT)
    parts = [
        f"# {title}",
        f"{len(found.nominal)} in-distribution frames, of which {below:.1%} have a confidence below "
        f"{CONFIDENCE_LIMIT:g}.",
        _detection_table(found),
        "Errors of the in-distribution frames that are kept when the least confident ones are dropped:",
        _coverage_table(found),
    ]
    return "\n\n".join(parts) + "\n"


def _detection_table(found: Confidences) -> str:
    detected = [f"detected at {share:.0%} false alarms" for share in FALSE_ALARMS]
    rows = [
        [
            kind,
            row["frames"],
            f"{row['auc']:.3f}",
            *(f"{row[f'found_at_{share:g}']:.1%}" for share in FALSE_ALARMS),
            f"{row['below_limit']:.1%}",
        ]
        for kind, row in _detection(found.nominal, found.outliers).items()
    ]
    titles = ["out-of-distribution input", "frames", "area under ROC", *detected, f"below {CONFIDENCE_LIMIT:g}"]
    return markdown_table(titles, rows, labels=1)


def _coverage_table(found: Confidences) -> str:
    rows = []
    for share, kept in risk_coverage(found.nominal, found.errors):
        one = kept.summary()
        metres = [f"{one[f'{what}_position_m']:.3f}" for what in ("median", "p95")]
        degrees = [f"{one[f'{what}_rotation_deg']:.2f}" for what in ("median", "p95")]
        rows.append([f"{share:.0%}", *metres, *degrees])
    return markdown_table(["dropped", "median (m)", "95 % (m)", "median (deg)", "95 % (deg)"], rows, labels=0)


def _detection(nominal: Array, outliers: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Figures of each kind of input, by column of ``confidence.csv``."""
    return {
        kind: {
            "frames": len(values),
            "auc": area_under_roc(nominal, values),
            **{f"found_at_{share:g}": detection_rate(nominal, values, share) for share in FALSE_ALARMS},
            "below_limit": float(np.mean(values < CONFIDENCE_LIMIT)),
        }
        for kind, values in outliers.items()
    }


def _csv_rows(found: Confidences) -> list[dict[str, Any]]:
    """A row for each kind of input; ``good`` is the in-distribution one, which has no area."""
    rows = _detection(found.nominal, {"good": found.nominal, **found.outliers})
    return [{"input": kind, **row, **({"auc": ""} if kind == "good" else {})} for kind, row in rows.items()]


def _figure(title: str, found: Confidences) -> Figure:
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_roc(left, found)
    _plot_risk(right, found)
    for axes in (left, right):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(True, alpha=0.3)
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(title)
    return figure


def _plot_roc(axes: Axes, found: Confidences) -> None:
    limits = np.concatenate([[0.0], np.unique(found.nominal), [np.inf]])
    alarms = np.searchsorted(np.sort(found.nominal), limits, side="left") / len(found.nominal)
    for kind, values in found.outliers.items():
        detected = np.searchsorted(np.sort(values), limits, side="left") / len(values)
        axes.step(alarms, detected, where="post", label=f"{kind}: {area_under_roc(found.nominal, values):.3f}")
    axes.plot([0, 1], [0, 1], "k--", linewidth=1)
    axes.set(xlabel="in-distribution frames rejected (false alarms)", ylabel="out-of-distribution frames rejected")
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01))
    axes.legend(title="area under the curve", fontsize="small")


def _plot_risk(axes: Axes, found: Confidences) -> None:
    """Mean error of the most confident in-distribution frames against their share."""
    order = np.argsort(found.nominal, kind="stable")
    counts = np.arange(len(order), 0, -1)
    for values, label, colour in (
        (found.errors.position_m, "position (m)", "tab:blue"),
        (found.errors.rotation_deg, "rotation (deg)", "tab:orange"),
    ):
        mean = np.cumsum(values[order][::-1])[::-1] / counts
        axes.plot(counts / len(order), mean, color=colour, label=label)
    axes.set(xlabel="in-distribution frames kept, the most confident ones", ylabel="mean error of kept frames")
    axes.set(xlim=(0.05, 1), ylim=0)
    axes.legend(fontsize="small")
