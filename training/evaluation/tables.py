# SPDX-License-Identifier: Apache-2.0
"""Metrics of evaluations, and their tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from training.evaluation.consistency import COVERAGES, PARTS, calibration_summary, effective_sample_size
from training.evaluation.metrics import CONFIDENCE_LIMIT, FAR_OFF, THRESHOLDS, confidence_summary, pose_errors
from training.evaluation.tracks import EvaluatedTrack, Evaluation
from training.evaluation.trajectory import RPE_FRAMES, RPE_METRES, trajectory_summary
from training.output import markdown_table

Metrics = dict[str, float]

ALL = "all"  # the row over all sequences


class Row(NamedTuple):
    """Metrics, or their mean and sample standard deviation over several checkpoints (empty over one)."""

    mean: Metrics
    std: Metrics


class Column(NamedTuple):
    """Column of a table: title, key of the metric, decimals, and whether it is a share, shown in per cent."""

    title: str
    key: str
    decimals: int = 3
    share: bool = False


class Table(NamedTuple):
    """Table of ``results.md``: title, columns, and an explanation below."""

    title: str
    columns: Sequence[Column]
    note: str


_ERRORS = Table(
    "Errors",
    (
        Column("frames", "frames", 0),
        Column("median (m)", "median_position_m"),
        Column("mean (m)", "mean_position_m"),
        Column("95 % (m)", "p95_position_m"),
        Column("median (deg)", "median_rotation_deg", 2),
        Column("mean (deg)", "mean_rotation_deg", 2),
        Column("95 % (deg)", "p95_rotation_deg", 2),
        *(
            Column(f"{metres:g} m, {degrees:g} deg", f"within_{metres:g}m_{degrees:g}deg", 1, True)
            for metres, degrees in THRESHOLDS
        ),
    ),
    "The last columns are the shares of frames within both limits.",
)
_TRAJECTORY = Table(
    "Trajectory",
    (
        Column("ATE (m)", "ate_rmse_m"),
        Column("aligned ATE (m)", "ate_aligned_rmse_m"),
        *(
            Column(f"RPE over {span} ({unit})", f"rpe_{span.replace(' ', '')}_rmse_{unit}", decimals)
            for span in (f"{RPE_FRAMES} frame", *(f"{metres} m" for metres in RPE_METRES))
            for unit, decimals in (("m", 3), ("deg", 2))
        ),
    ),
    "Root mean squares. Aligned: after the rigid motion of each sequence's estimates that fits best (Umeyama).",
)
_COVARIANCE = Table(
    "Covariance",
    (
        Column("independent", "independent_errors", 0),
        *(
            column
            for part in PARTS
            for column in (
                Column(f"NEES {part}", f"nees_{part}", 2),
                *(Column(f"{100 * share:.0f} %", f"coverage{100 * share:.0f}_{part}", 1, True) for share in COVERAGES),
            )
        ),
    ),
    "Mean NEES: 6 (pose) and 3 (position, rotation) with a consistent covariance, more where it is too small. After it "
    "the shares of true poses inside the covariance's ellipsoids of 50, 90 and 95 %. Errors of neighbouring frames are "
    "correlated: *independent* is their effective sample size; where it is small, the shares are uncertain.",
)
_CONFIDENCE = Table(
    "Confidence",
    (
        Column("a sensor dropped", "dropped_sensor", 1, True),
        Column("withheld", "withheld", 1, True),
        Column("far off", "far_off", 1, True),
        Column("far off and published", "far_off_and_out", 1, True),
        Column("area under ROC", "far_off_auc"),
        Column("published: median (m)", "out_median_position_m"),
        Column("95 % (m)", "out_p95_position_m"),
        Column("median (deg)", "out_median_rotation_deg", 2),
        Column("95 % (deg)", "out_p95_rotation_deg", 2),
        *(Column(f"inside 95 %, {part}", f"out_coverage95_{part}", 1, True) for part in PARTS),
    ),
    f"Shares of frames: estimated without an outlier sensor, with a confidence below {CONFIDENCE_LIMIT:g} (withheld), "
    f"with an error above {FAR_OFF[0]:g} m or {FAR_OFF[1]:g} deg (far off), and far off without being withheld. The "
    "area under the ROC curve is that of detecting far-off frames by their confidence. The last columns are of the "
    "frames that are not withheld: what a robot gets.",
)


def compute_metrics(tracks: Sequence[EvaluatedTrack]) -> Metrics:
    """All metrics over the frames of the tracks."""
    truth = [pose for track in tracks for pose in track.truth]
    estimates = [estimate for track in tracks for estimate in track.estimates]
    errors = pose_errors(truth, [estimate.map_from_body for estimate in estimates])
    confidence = confidence_summary(errors, estimates)
    published = [i for i, one in enumerate(estimates) if one.confidence is None or one.confidence >= CONFIDENCE_LIMIT]
    if confidence and published:
        known, given = [truth[i] for i in published], [estimates[i] for i in published]
        figures = pose_errors(known, [one.map_from_body for one in given]).summary()
        figures |= calibration_summary(known, given)
        confidence |= {f"out_{name}": value for name, value in figures.items()}
    return {
        **errors.summary(),
        **trajectory_summary([(track.truth, track.poses) for track in tracks]),
        "independent_errors": sum(_effective_sample_size(run) for track in tracks for run in track.runs()),
        **calibration_summary(truth, estimates),
        **confidence,
    }


def _effective_sample_size(run: EvaluatedTrack) -> float:
    covariances = np.stack([estimate.covariance for estimate in run.estimates])
    return effective_sample_size(run.truth, run.poses, covariances)


def metrics_by_sequence(evaluation: Evaluation) -> dict[str, Metrics]:
    """Metrics of each sequence, and :data:`ALL` over the frames of all."""
    each = {track.name: compute_metrics([track]) for track in evaluation.tracks}
    return each | {ALL: compute_metrics(evaluation.tracks)}


def mean_and_std(runs: Sequence[Metrics]) -> Row:
    """Mean and sample standard deviation over runs, of the metrics that all of them have."""
    keys = [key for key in runs[0] if all(key in metrics for metrics in runs)]
    values = np.array([[metrics[key] for key in keys] for metrics in runs])
    std = values.std(axis=0, ddof=1).tolist() if len(runs) > 1 else []
    return Row(dict(zip(keys, values.mean(axis=0).tolist(), strict=True)), dict(zip(keys, std, strict=bool(std))))


def results_tables(rows: Mapping[str, Row]) -> str:
    """All tables as Markdown, a row for each name; rows without any metric of a table are absent from it.

    The confidence's table is absent where no row has any.
    """
    has_confidence = any("withheld" in row.mean for row in rows.values())
    tables = (_ERRORS, _TRAJECTORY, _COVARIANCE, *([_CONFIDENCE] if has_confidence else []))
    return "\n\n".join(_table_text(table, rows) for table in tables)


def errors_table(rows: Mapping[str, Row]) -> str:
    """The table of errors alone, without heading and note."""
    return _markdown(_ERRORS, rows)


def _table_text(table: Table, rows: Mapping[str, Row]) -> str:
    return f"## {table.title}\n\n{_markdown(table, rows)}\n\n{table.note}"


def _markdown(table: Table, rows: Mapping[str, Row]) -> str:
    known = {name: row for name, row in rows.items() if any(column.key in row.mean for column in table.columns)}
    cells = [[name, *(_cell(column, row) for column in table.columns)] for name, row in known.items()]
    return markdown_table(["", *(column.title for column in table.columns)], cells, labels=1)


def _cell(column: Column, row: Row) -> str:
    if column.key not in row.mean:
        return "–"
    scale, unit = (100, " %") if column.share else (1, "")
    text = f"{scale * row.mean[column.key]:.{column.decimals}f}"
    if column.key in row.std and column.decimals:
        text += f" ± {scale * row.std[column.key]:.{column.decimals}f}"
    return text + unit
