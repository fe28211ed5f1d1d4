# SPDX-License-Identifier: Apache-2.0
"""How well the confidence tells good frames from bad ones: ROC over kinds of bad input, and error against coverage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray

from training.config import checkpoint_source_options
from training.evaluation.bad_input import bad_frames
from training.evaluation.metrics import LIMIT, PoseErrors, area_under_roc, pose_errors
from training.output import markdown_table, write_csv, write_figure, write_text
from training.sources.base import Source
from training.sources.factory import open_sources
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import IMAGE, Estimate, Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.progress import progress_bar

Array = NDArray[np.float64]

FALSE_ALARMS = (0.01, 0.05)
DROPPED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # shares of frames, the least confident ones
_FOREIGN_FRAMES = 100  # of each recording


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
    localizer.drop_outlier_sensors = False  # what is judged is the answer that rests on all sensors, bad ones included
    if localizer.confidence is None:
        raise ConfigError(f"{checkpoint} was written without a confidence; add one with `vmloc calibrate`")
    known = _open(localizer, data, split, overrides, frames, localizer.modalities)
    strangers = [frame for path in foreign for frame in _strangers(localizer, path, overrides)]
    scale_m = localizer.header.pose_codec.scale_m
    truth: list[Pose] = []
    estimates: list[Estimate] = []
    judged: dict[str, list[float]] = {}
    with progress_bar(sum(map(len, known)), "judging", "frames", disable=not progress) as bar:
        for source in known:
            samples = list(source)
            for number, sample in enumerate(samples):
                estimate = localizer.localize(sample.frame)
                if estimate.confidence is not None:
                    truth.append(sample.map_from_body)
                    estimates.append(estimate)
                for kind, frame in bad_frames(samples, number, strangers, localizer.modalities, scale_m):
                    confidence = localizer.localize(frame).confidence
                    if confidence is not None:
                        judged.setdefault(kind, []).append(confidence)
                bar.update()
    if not estimates:
        raise DataError("no frame of the data has sensors that the confidence was fitted for")
    good = np.array([estimate.confidence for estimate in estimates])
    bad = {kind: np.array(values) for kind, values in judged.items()}
    errors = pose_errors(truth, [estimate.map_from_body for estimate in estimates])
    folder = out or Path("confidence") / checkpoint.stem
    title = f"Confidence of {localizer.header.model.name} ({checkpoint.name})"
    text = _text(title, good, bad, errors)
    write_text(folder / "confidence.md", text)
    write_csv(folder / "confidence.csv", _csv_rows(good, bad))
    _write_picture(folder / "roc.png", good, bad, errors, title)
    return text, folder


def detected(good: ArrayLike, bad: ArrayLike, false_alarms: float) -> float:
    """Share of bad frames below the greatest limit that at most this share of good frames lies below."""
    ordered = np.sort(np.asarray(good, np.float64))
    limit = ordered[min(math.floor(false_alarms * len(ordered) + 1e-9), len(ordered) - 1)]
    return float(np.mean(np.asarray(bad) < limit))


def risk_coverage(confidence: ArrayLike, errors: PoseErrors) -> list[tuple[float, PoseErrors]]:
    """Errors of the frames that are kept when each of the shares :data:`DROPPED`, the least confident, is dropped."""
    order = np.argsort(np.asarray(confidence), kind="stable")
    kept = [(share, order[math.floor(share * len(order)) :]) for share in DROPPED]
    return [(share, PoseErrors(errors.position_m[rows], errors.rotation_deg[rows])) for share, rows in kept]


def _strangers(localizer: Localizer, path: Path, overrides: list[str] | None) -> list[Frame]:
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
    """Sources with about as many frames as wanted, if they hold more."""
    header = localizer.header

    def sources(stride: list[str]) -> list[Source]:
        options = checkpoint_source_options(header, [*(overrides or []), *stride])
        return [x for path in paths for x in open_sources(path, split, options, modalities)]

    found = sources([])
    every = math.ceil(sum(map(len, found)) / frames)
    if every <= 1:
        return found
    stride = checkpoint_source_options(header, overrides).stride
    return sources([f"source.stride={stride * every}"])


def _text(title: str, good: Array, bad: Mapping[str, Array], errors: PoseErrors) -> str:
    parts = [
        f"# {title}",
        f"{len(good)} good frames, of which {np.mean(good < LIMIT):.1%} have a confidence below {LIMIT:g}.",
        _detection_table(good, bad),
        "Errors of the good frames that are kept when the least confident ones are dropped:",
        _coverage_table(good, errors),
    ]
    return "\n\n".join(parts) + "\n"


def _detection_table(good: Array, bad: Mapping[str, Array]) -> str:
    found = [f"found at {share:.0%} false alarms" for share in FALSE_ALARMS]
    rows = [
        [
            kind,
            row["frames"],
            f"{row['auc']:.3f}",
            *(f"{row[f'found_at_{share:g}']:.1%}" for share in FALSE_ALARMS),
            f"{row['below_limit']:.1%}",
        ]
        for kind, row in _rows(good, bad).items()
    ]
    return markdown_table(["bad input", "frames", "area under ROC", *found, f"below {LIMIT:g}"], rows, labels=1)


def _coverage_table(good: Array, errors: PoseErrors) -> str:
    rows = []
    for share, kept in risk_coverage(good, errors):
        one = kept.summary()
        metres = [f"{one[f'{what}_position_m']:.3f}" for what in ("median", "p95")]
        degrees = [f"{one[f'{what}_rotation_deg']:.2f}" for what in ("median", "p95")]
        rows.append([f"{share:.0%}", *metres, *degrees])
    return markdown_table(["dropped", "median (m)", "95 % (m)", "median (deg)", "95 % (deg)"], rows, labels=0)


def _rows(good: Array, bad: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    return {
        kind: {
            "frames": len(values),
            "auc": area_under_roc(good, values),
            **{f"found_at_{x:g}": detected(good, values, x) for x in FALSE_ALARMS},
            "below_limit": float(np.mean(values < LIMIT)),
        }
        for kind, values in bad.items()
    }


def _csv_rows(good: Array, bad: Mapping[str, Array]) -> list[dict[str, Any]]:
    """A row for each kind of input; the good one has no area."""
    found = _rows(good, {"good": good, **bad})
    return [{"input": kind, **row, **({"auc": ""} if kind == "good" else {})} for kind, row in found.items()]


def _write_picture(file: Path, good: Array, bad: Mapping[str, Array], errors: PoseErrors, title: str) -> None:
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    limits = np.concatenate([[0.0], np.unique(good), [np.inf]])
    alarms = np.searchsorted(np.sort(good), limits, side="left") / len(good)
    for kind, values in bad.items():
        found = np.searchsorted(np.sort(values), limits, side="left") / len(values)
        left.step(alarms, found, where="post", label=f"{kind}: {area_under_roc(good, values):.3f}")
    left.plot([0, 1], [0, 1], "k--", linewidth=1)
    left.set(xlabel="false alarms: good frames refused", ylabel="bad frames refused", xlim=(-0.01, 1), ylim=(0, 1.01))
    left.legend(title="area under the curve", fontsize="small")
    order = np.argsort(good, kind="stable")
    kept = np.arange(len(good), 0, -1) / len(good)
    for values, label, colour in (
        (errors.position_m, "position (m)", "tab:blue"),
        (errors.rotation_deg, "rotation (deg)", "tab:orange"),
    ):
        mean = np.cumsum(values[order][::-1])[::-1] / np.arange(len(good), 0, -1)
        right.plot(kept, mean, color=colour, label=label)
    right.set(xlabel="good frames kept, the most confident ones", ylabel="mean error of them", xlim=(0.05, 1), ylim=0)
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(True, alpha=0.3)
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(title)
    write_figure(file, figure)
