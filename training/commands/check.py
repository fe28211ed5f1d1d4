# SPDX-License-Identifier: Apache-2.0
"""``vmloc check``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import add_data, add_source_overrides, add_split, check_positive


def add_check(commands: Any) -> None:
    """``vmloc check``."""
    parser = add_command(
        commands,
        "check",
        _check,
        "Look for what is wrong with recordings: clocks, transforms, poses, pictures, coverage. Exit status 1: errors.",
    )
    add_data(parser, ", all of one place and robot")
    add_split(parser, "all")
    parser.add_argument("--frames", type=int, default=240, help="about how many to look at, spread over all data")
    add_source_overrides(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings with their numbers")
    parser.add_argument("--out", type=Path, metavar="PNG", help="draw what was found")


def _check(options: argparse.Namespace) -> None:
    from training.check.report import report_json, report_text
    from training.check.run import run_checks
    from training.check.sheet import draw_sheet
    from training.config import parse_source_options
    from training.output import write_figure, write_text
    from vmloc_ros.core.errors import DataError

    check_positive("--frames", options.frames)
    source_options = parse_source_options({}, options.set)
    report = run_checks(options.data, split=options.split, options=source_options, frames=options.frames)
    print(report_text(report))
    if options.json is not None:
        write_text(options.json, report_json(report))
        print(f"wrote {options.json}")
    if options.out is not None and report.recordings:
        write_figure(options.out, draw_sheet(report))
        print(f"wrote {options.out}")
    if report.failed:
        errors = sum(finding.level == "error" for finding in report.findings)
        raise DataError(
            f"{errors} error{'s' if errors != 1 else ''}: a model that is trained on these data will be wrong"
        )
