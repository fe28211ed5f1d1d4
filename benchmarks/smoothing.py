# SPDX-License-Identifier: Apache-2.0
"""Effect of filtering with odometry on recorded drives, as a Markdown table.

python benchmarks/smoothing.py CHECKPOINT BAG [BAG ...] [--odometry-topic /odom] [--delay-s 0.1 0.3] [--seed 0]
    [--device cpu] [--out FILE]

Every frame is localized as on the robot; its pose (fix) arrives after a uniformly random delay, in order. Four
trajectories are evaluated at the frames' stamps, with the odometry of the same stamp:

* raw: each frame's own pose, available only after the delay.
* filtered: the same, after the filter's update with that pose.
* raw, live: the latest pose that has arrived by the stamp, extrapolated with odometry: a robot without a filter.
* filtered, live: the filter's prediction at the stamp, from the poses that have arrived by then.

Frames before the arrival of the first fix are not evaluated in any of the four.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow a busy machine down

import numpy as np

from training.evaluation.consistency import map_errors, nees
from training.evaluation.metrics import pose_errors
from training.evaluation.tracks import EvaluatedTrack, evaluate
from training.evaluation.trajectory import pairs_by_frames, relative_errors
from training.output import markdown_table, write_text
from training.sources import open_sources
from training.sources.options import SourceOptions
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose, interpolate_poses
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.runtime.odometry_filter import FilterConfig, FilteredPose, OdometryFilter, Verdict

TITLES = (
    "drive",
    "poses",
    "frames",
    "position (m)",
    "rotation (deg)",
    "frame to frame (m)",
    "frame to frame (deg)",
    "NEES pose, position, rotation",
    "rejected",
)


@dataclass(slots=True)
class Trajectory:
    """Poses of one kind on one drive, with the truth.

    Attributes:
        rejected: number of fixes that the filter rejected.
    """

    truth: list[Pose] = field(default_factory=list)
    poses: list[FilteredPose] = field(default_factory=list)
    rejected: int = 0


def main() -> None:
    """Localize, filter and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bags", type=Path, nargs="+")
    parser.add_argument("--odometry-topic", default="/odom")
    parser.add_argument("--delay-s", type=float, nargs=2, default=(0.1, 0.3), metavar=("LEAST", "MOST"))
    parser.add_argument("--seed", type=int, default=0, help="of the delays")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="file for the table, beside printing it")
    options = parser.parse_args()
    localizer = Localizer.load(options.checkpoint, options.device)
    drives = []
    for number, bag in enumerate(options.bags):
        sources = open_sources(bag, "all", SourceOptions(), localizer.modalities)
        (track,) = evaluate(localizer, sources).tracks
        odometry = interpolate_poses(*read_odometry(bag, options.odometry_topic), track.stamps_ns)
        rng = np.random.default_rng([options.seed, number])
        drives.append((track.name, follow(track, odometry, options.delay_s, rng)))
    table = markdown_table(TITLES, rows(drives), labels=2)
    print(table)
    if options.out:
        write_text(options.out, table + "\n")


def read_odometry(bag: Path, topic: str) -> tuple[list[int], list[Pose]]:
    """Stamps and ``odom_from_base`` of an odometry topic, in order of time."""
    messages: dict[int, Pose] = {}
    with open_bag(bag) as reader:
        connections = [connection for connection in reader.connections if connection.topic == topic]
        if not connections:
            raise DataError(f"bag {bag} has no topic {topic}; give the odometry's with --odometry-topic")
        for connection, _, data in reader.messages(connections):
            message = reader.deserialize(data, connection.msgtype)
            messages[stamp_ns(message.header)] = decode_pose(message)
    return sorted(messages), [messages[stamp] for stamp in sorted(messages)]


def follow(
    track: EvaluatedTrack, odometry: Sequence[Pose | None], delay_s: tuple[float, float], rng: np.random.Generator
) -> dict[str, Trajectory]:
    """The four trajectories of a drive."""
    stamps_ns = np.array(track.stamps_ns)
    arrivals_ns = np.maximum.accumulate(stamps_ns + (1e9 * rng.uniform(*delay_s, len(stamps_ns))).astype(np.int64))
    known = [row for row, pose in enumerate(odometry) if pose is not None]
    live = [(stamps_ns[row], 0, row) for row in known]
    fixes = [(arrivals_ns[row], 1, row) for row in known]
    result = {name: Trajectory() for name in ("raw", "filtered", "raw, live", "filtered, live")}
    smoother, latest = OdometryFilter(FilterConfig()), OdometryFilter(FilterConfig())
    evaluated: set[int] = set()

    def note(name: str, row: int, pose: FilteredPose) -> None:
        result[name].truth.append(track.truth[row])
        result[name].poses.append(pose)

    for _, is_fix, row in sorted(live + fixes):
        estimate = track.estimates[row]
        moment = (estimate.stamp_ns, odometry[row])
        if is_fix:
            fix = (*moment, estimate.map_from_body, estimate.covariance)
            latest.reset("a newer fix")
            latest.correct(*fix)
            outcome = smoother.correct(*fix)
            result["filtered"].rejected += outcome.verdict is Verdict.REJECTED
            if row in evaluated:
                note("raw", row, FilteredPose(estimate.stamp_ns, estimate.map_from_body, estimate.covariance))
                note("filtered", row, outcome.filtered)
        elif (carried := latest.predict(*moment)) is not None:
            evaluated.add(row)
            note("raw, live", row, carried)
            note("filtered, live", row, smoother.predict(*moment))
    result["filtered, live"].rejected = result["filtered"].rejected
    return result


def rows(drives: Sequence[tuple[str, dict[str, Trajectory]]]) -> Iterable[list[str]]:
    """Rows of the table: all drives together, then each."""
    groups = [(f"all {len(drives)}", [trajectories for _, trajectories in drives])] if len(drives) > 1 else []
    groups += [(name, [trajectories]) for name, trajectories in drives]
    for name, group in groups:
        for kind in group[0]:
            yield row_of(name, kind, [trajectories[kind] for trajectories in group])


def row_of(drive: str, kind: str, trajectories: Sequence[Trajectory]) -> list[str]:
    """A row: errors, errors from frame to frame, NEES and rejected fixes of one kind of poses on some drives."""
    truth = [pose for trajectory in trajectories for pose in trajectory.truth]
    poses = [pose for trajectory in trajectories for pose in trajectory.poses]
    errors = pose_errors(truth, [pose.map_from_base for pose in poses])
    steps = [
        relative_errors(trajectory.truth, [pose.map_from_base for pose in trajectory.poses], pairs)
        for trajectory in trajectories
        if len(pairs := pairs_by_frames(len(trajectory.poses), 1))
    ]
    errors_map = map_errors(truth, [pose.map_from_base for pose in poses])
    covariances = np.stack([pose.covariance for pose in poses])
    parts = (slice(0, 6), slice(0, 3), slice(3, 6))
    consistency = [float(nees(errors_map[:, part], covariances[:, part, part]).mean()) for part in parts]
    rejected = sum(trajectory.rejected for trajectory in trajectories) / len(poses)
    return [
        drive,
        kind,
        str(len(poses)),
        spread(errors.position_m, "{:.2f}"),
        spread(errors.rotation_deg, "{:.2f}"),
        spread(np.concatenate([step.position_m for step in steps]), "{:.3f}"),
        spread(np.concatenate([step.rotation_deg for step in steps]), "{:.2f}"),
        ", ".join(f"{value:.1f}" for value in consistency),
        f"{100 * rejected:.1f} %" if kind.startswith("filtered") else "",
    ]


def spread(values: np.ndarray, form: str) -> str:
    """Median, 95th percentile and maximum."""
    return " / ".join(form.format(value) for value in np.percentile(values, [50, 95, 100]))


if __name__ == "__main__":
    main()
