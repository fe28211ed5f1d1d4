# SPDX-License-Identifier: Apache-2.0
"""Result files of ``vmloc evaluate``: tables, trajectories and figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluation.consistency import confidence_levels, pose_nees
from training.evaluation.figures import save_calibration_plot, save_corruption_plot, save_error_cdf, save_track_plot
from training.evaluation.metrics import PoseErrors
from training.evaluation.tables import (
    ALL,
    Metrics,
    Row,
    errors_table,
    mean_and_std,
    metrics_by_sequence,
    results_tables,
)
from training.evaluation.tracks import EvaluatedTrack, Evaluation
from training.output import write_csv, write_text
from vmloc_ros.core.files import write_aside
from vmloc_ros.core.geometry import Pose

Baselines = Mapping[str, Metrics]


def write_results(evaluation: Evaluation, folder: Path, baselines: Baselines | None = None) -> str:
    """Write one checkpoint's results; the files of a sequence are in a folder of its own, if there are several.

    Over all sequences: ``results.md``, ``results.csv``, ``metrics.json``, ``errors.csv``, ``error_cdf.png``,
    ``calibration.png`` and, with corrupted input, ``corruption.png``. For each sequence: ``estimate.tum``,
    ``truth.tum``, ``trajectory.png``.

    Args:
        baselines: metrics of other methods on the same data, by name.

    Returns:
        The text of ``results.md``.

    Raises:
        OutputError: a file cannot be written.
    """
    found = metrics_by_sequence(evaluation)
    title = _title(evaluation)
    text = f"# {title}\n\n{evaluation.checkpoint}\n\n{results_tables(_rows(evaluation, [found], baselines or {}))}\n"
    write_text(folder / "results.md", text)
    more = {"checkpoint": evaluation.checkpoint, "sequences": {k: found[k] for k in found if k != ALL}}
    _write_metrics(folder, found[ALL], evaluation, more, baselines)
    lines = [(evaluation.checkpoint, sequence, summary) for sequence, summary in found.items()]
    write_csv(folder / "results.csv", _csv_rows(evaluation, lines))
    write_csv(folder / "errors.csv", list(_frame_rows(evaluation.tracks)))
    several = len(evaluation.tracks) > 1
    for track in evaluation.tracks:
        _write_track(folder / track.name if several else folder, track, evaluation.name)
    errors = {track.name: track.errors for track in evaluation.tracks} if several else {}
    save_error_cdf(folder / "error_cdf.png", errors | {ALL: evaluation.errors}, title)
    levels = confidence_levels(evaluation.truth, evaluation.estimates)
    save_calibration_plot(folder / "calibration.png", levels, title)
    if evaluation.examples:
        save_corruption_plot(folder / "corruption.png", evaluation.examples, evaluation.preprocess, title)
    return text


def write_comparison(evaluations: Sequence[Evaluation], folder: Path, baselines: Baselines | None = None) -> str:
    """Write mean and standard deviation over several checkpoints of one system on the same data.

    ``results.md``, ``results.csv``, ``metrics.json`` (means under the same keys as of one checkpoint, deviations under
    ``std``) and ``error_cdf.png`` with a curve for each.

    Returns:
        The text of ``results.md``.

    Raises:
        OutputError: a file cannot be written.
    """
    first, found = evaluations[0], [metrics_by_sequence(evaluation) for evaluation in evaluations]
    checkpoints = {evaluation.checkpoint: one for evaluation, one in zip(evaluations, found, strict=True)}
    each = {name: Row(one[ALL], {}) for name, one in checkpoints.items()}
    text = (
        f"# {_title(first)}\n\nMean ± standard deviation over {len(found)} checkpoints.\n\n"
        f"{results_tables(_rows(first, found, baselines or {}))}\n\n## Each checkpoint\n\n{errors_table(each)}\n"
    )
    write_text(folder / "results.md", text)
    rows = {sequence: mean_and_std([one[sequence] for one in found]) for sequence in found[0]}
    more = {
        "std": rows[ALL].std,
        "sequences": {sequence: {**row.mean, "std": row.std} for sequence, row in rows.items() if sequence != ALL},
        "checkpoints": {name: one[ALL] for name, one in checkpoints.items()},
    }
    _write_metrics(folder, rows[ALL].mean, first, more, baselines)
    lines = [(name, sequence, summary) for name, one in checkpoints.items() for sequence, summary in one.items()]
    for sequence, row in rows.items():
        lines += [("mean", sequence, row.mean), ("std", sequence, row.std)]
    write_csv(folder / "results.csv", _csv_rows(first, lines))
    errors = {evaluation.checkpoint: evaluation.errors for evaluation in evaluations}
    pooled = PoseErrors(
        np.concatenate([error.position_m for error in errors.values()]),
        np.concatenate([error.rotation_deg for error in errors.values()]),
    )
    save_error_cdf(folder / "error_cdf.png", errors | {ALL: pooled}, _title(first))
    return text


def write_tum(file: Path, stamps_ns: Sequence[int], poses: Sequence[Pose]) -> None:
    """A trajectory in the TUM format: ``stamp_s tx ty tz qx qy qz qw`` per line."""
    with write_aside(file) as path, path.open("w") as text:
        for stamp, pose in zip(stamps_ns, poses, strict=True):
            w, x, y, z = pose.quaternion_wxyz
            px, py, pz = pose.position_m
            # Integer arithmetic: a float of seconds since 1970 holds no nanoseconds.
            seconds, nanoseconds = divmod(stamp, 1_000_000_000)
            text.write(f"{seconds}.{nanoseconds:09d} {px:.6f} {py:.6f} {pz:.6f} {x:.9f} {y:.9f} {z:.9f} {w:.9f}\n")


def _rows(evaluation: Evaluation, found: Sequence[Mapping[str, Metrics]], baselines: Baselines) -> dict[str, Row]:
    """Rows of the tables: each sequence if there are several, all of them together, baselines."""
    over = {sequence: mean_and_std([one[sequence] for one in found]) for sequence in found[0]}
    over_all = over.pop(ALL)
    rows = {f"{evaluation.name}, {sequence}": row for sequence, row in over.items()} if len(over) > 1 else {}
    name = f"{evaluation.name}, all {len(over)} sequences" if rows else evaluation.name
    return {**rows, name: over_all, **{name: Row(summary, {}) for name, summary in baselines.items()}}


def _title(evaluation: Evaluation) -> str:
    names = [track.name for track in evaluation.tracks]
    return f"{evaluation.name} on {', '.join(names) if len(names) < 4 else f'{len(names)} sequences'}"


def _write_metrics(
    folder: Path, over_all: Metrics, evaluation: Evaluation, more: dict[str, Any], baselines: Baselines | None
) -> None:
    metrics: dict[str, Any] = {**over_all, "system": evaluation.system, **more}
    if evaluation.corruption.tag:
        metrics["corruption"] = asdict(evaluation.corruption)
    if baselines:
        metrics["baselines"] = dict(baselines)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def _csv_rows(evaluation: Evaluation, lines: Sequence[tuple[str, str, Metrics]]) -> list[dict[str, Any]]:
    """A row for each checkpoint and sequence."""
    known = {"system": evaluation.system, "corruption": str(evaluation.corruption)}
    return [{**known, "checkpoint": name, "sequence": sequence, **metrics} for name, sequence, metrics in lines]


def _frame_rows(tracks: Sequence[EvaluatedTrack]) -> Iterator[dict[str, Any]]:
    """A row for each frame; the confidence is empty where there is none."""
    for track in tracks:
        errors, nees = track.errors, pose_nees(track.truth, track.estimates)["pose"]
        for number, estimate in enumerate(track.estimates):
            yield {
                "stamp_ns": estimate.stamp_ns,
                "position_m": errors.position_m[number],
                "rotation_deg": errors.rotation_deg[number],
                "nees": nees[number],
                "confidence": estimate.confidence,
                "sequence": track.name,
            }


def _write_track(folder: Path, track: EvaluatedTrack, name: str) -> None:
    write_tum(folder / "estimate.tum", track.stamps_ns, track.poses)
    write_tum(folder / "truth.tum", track.stamps_ns, track.truth)
    errors = track.errors.summary()
    title = (
        f"{name} on {track.name}: median {errors['median_position_m']:.2f} m, {errors['median_rotation_deg']:.1f} deg"
    )
    runs = track.runs()
    times_s = [(np.array(run.stamps_ns) - track.stamps_ns[0]) / 1e9 for run in runs]
    save_track_plot(folder / "trajectory.png", [(run.truth, run.poses) for run in runs], times_s, title)
