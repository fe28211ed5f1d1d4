# SPDX-License-Identifier: Apache-2.0
"""Metrics of evaluations as rows, and rows as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.consistency import COVERAGES, PARTS, calibration_summary, independent_errors
from training.evaluation.metrics import FAR_OFF, LIMIT, THRESHOLDS, confidence_summary, pose_errors
from training.evaluation.tracks import EvaluatedTrack, Evaluation
from training.evaluation.trajectory import RPE_FRAMES, RPE_METRES, trajectory_summary
from training.output import markdown_table
from vmloc_ros.core.geometry import Pose

Summary = dict[str, float]

ALL = "all"  # the row over all sequences


class Row(NamedTuple):
    """Metrics, or their mean and sample standard deviation over several checkpoints (empty over one)."""

    mean: Summary
    std: Summary


class Column(NamedTuple):
    """Of a Markdown table: title, key of the metric, decimals, and whether it is a share, shown in per cent."""

    title: str
    key: str
    decimals: int = 3
    share: bool = False


class Table(NamedTuple):
    """Of results.md."""

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
    "Mean NEES: 6 (pose) and 3 (position, rotation) of a covariance that tells the truth, more where it is too small. "
    "After it the shares of true poses inside the covariance's ellipsoids of 50, 90 and 95 %. Neighbouring frames err "
    "alike: *independent* is to how many independent errors those of all frames amount; of a few, a share says little.",
)
_CONFIDENCE = Table(
    "Confidence",
    (
        Column("a sensor left out", "left_out", 1, True),
        Column("withheld", "withheld", 1, True),
        Column("far off", "far_off", 1, True),
        Column("far off and out", "far_off_and_out", 1, True),
        Column("area under ROC", "far_off_auc"),
        Column("out: median (m)", "out_median_position_m"),
        Column("95 % (m)", "out_p95_position_m"),
        Column("median (deg)", "out_median_rotation_deg", 2),
        Column("95 % (deg)", "out_p95_rotation_deg", 2),
        *(Column(f"inside 95 %, {part}", f"out_coverage95_{part}", 1, True) for part in PARTS),
    ),
    f"Shares of frames that were answered without a strange sensor, whose confidence is less than {LIMIT:g}, that are "
    f"off by more than {FAR_OFF[0]:g} m or {FAR_OFF[1]:g} deg, and that are so without being withheld. The area says "
    "how well the confidence tells which frames are far off. The last columns are of those that go out, not "
    "withheld: what a robot gets.",
)


def summarise(tracks: Sequence[EvaluatedTrack]) -> Summary:
    """All metrics over the frames of the tracks."""
    truth = [pose for track in tracks for pose in track.truth]
    estimates = [estimate for track in tracks for estimate in track.estimates]
    errors = pose_errors(truth, [estimate.map_from_body for estimate in estimates])
    judged = confidence_summary(errors, estimates)
    out = [row for row, one in enumerate(estimates) if one.confidence is None or one.confidence >= LIMIT]
    if judged and out:
        true, given = [truth[row] for row in out], [estimates[row] for row in out]
        figures = pose_errors(true, [one.map_from_body for one in given]).summary() | calibration_summary(true, given)
        judged |= {f"out_{name}": value for name, value in figures.items()}
    return {
        **errors.summary(),
        **trajectory_summary([(track.truth, track.poses) for track in tracks]),
        "independent_errors": sum(independent_errors(*_answers(run)) for track in tracks for run in track.runs()),
        **calibration_summary(truth, estimates),
        **judged,
    }


def _answers(run: EvaluatedTrack) -> tuple[Sequence[Pose], Sequence[Pose], NDArray[np.float64]]:
    """True poses, estimated ones and their covariances ``(N, 6, 6)``."""
    return run.truth, run.poses, np.stack([estimate.covariance for estimate in run.estimates])


def summaries(evaluation: Evaluation) -> dict[str, Summary]:
    """Metrics of each sequence, and :data:`ALL` over the frames of all."""
    return {track.name: summarise([track]) for track in evaluation.tracks} | {ALL: summarise(evaluation.tracks)}


def mean_and_std(over: Sequence[Summary]) -> Row:
    """Over checkpoints, of the metrics that all of them have."""
    keys = [key for key in over[0] if all(key in summary for summary in over)]
    values = np.array([[summary[key] for key in keys] for summary in over])
    std = values.std(axis=0, ddof=1).tolist() if len(over) > 1 else []
    return Row(dict(zip(keys, values.mean(axis=0).tolist(), strict=True)), dict(zip(keys, std, strict=bool(std))))


def results_tables(rows: Mapping[str, Row]) -> str:
    """All tables as Markdown, a row for each name; a table leaves out rows that have none of its metrics.

    The table of the confidence is left out where no row has any.
    """
    judged = any("withheld" in row.mean for row in rows.values())
    tables = (_ERRORS, _TRAJECTORY, _COVARIANCE, *([_CONFIDENCE] if judged else []))
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
