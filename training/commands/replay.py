# SPDX-License-Identifier: Apache-2.0
"""``vmloc replay``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import add_overwrite


def add_replay(commands: Any) -> None:
    """``vmloc replay``."""
    parser = add_command(
        commands, "replay", _replay, "Play a bag into the ROS graph, and record topics, without rosbag2."
    )
    parser.add_argument("bag", type=Path)
    parser.add_argument("--rate", type=float, default=1.0, help="speed, 1 is real time")
    parser.add_argument("--loop", action="store_true", help="start over at the end until interrupted")
    parser.add_argument("--clock", action="store_true", help="publish /clock (for use_sim_time)")
    parser.add_argument("--topics", nargs="+", help="play only these")
    parser.add_argument("--wait-for", nargs="+", metavar="TOPIC", help="start when these have a subscriber")
    parser.add_argument("--record", type=Path, help="bag folder for recorded topics")
    parser.add_argument("--record-topics", nargs="+", default=[], metavar="TOPIC", help="what to record")
    parser.add_argument(
        "--max-gap",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="skip what is longer without any message (default: 10; inf: never)",
    )
    parser.add_argument("--allow-truncated", action="store_true", help="play what is there of a bag that was cut off")
    add_overwrite(parser, "a recording that exists")


def _replay(options: argparse.Namespace) -> None:
    from vmloc_ros.replay import replay

    report = replay(
        options.bag,
        rate=options.rate,
        loop=options.loop,
        clock=options.clock,
        topics=options.topics,
        wait_for=options.wait_for or [],
        record=options.record,
        record_topics=options.record_topics,
        overwrite=options.overwrite,
        max_gap_s=options.max_gap,
        allow_truncated=options.allow_truncated,
    )
    for topic, reason in report.skipped.items():
        print(f"not played: {topic}: {reason}", file=sys.stderr)
    print(f"played {sum(report.published.values())} messages, at most {1e3 * report.largest_lag_s:.0f} ms late")
    if options.record:
        counts = ", ".join(f"{count} of {topic}" for topic, count in report.recorded.items())
        print(f"wrote {options.record}: {counts or 'nothing was received'}")
