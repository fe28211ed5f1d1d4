# SPDX-License-Identifier: Apache-2.0
"""``vmloc show``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import add_data, add_source_overrides, add_split, check_positive


def add_show(commands: Any) -> None:
    """``vmloc show``."""
    parser = add_command(
        commands,
        "show",
        _show,
        "Draw some frames and all poses of data, to check topics and extrinsics.",
    )
    add_data(parser)
    add_split(parser, "all")
    parser.add_argument("--frames", type=int, default=4, help="how many to draw")
    add_source_overrides(parser)
    parser.add_argument("--out", type=Path, default=Path("show.png"), help="picture to write")


def _show(options: argparse.Namespace) -> None:
    from training.config import parse_source_options
    from training.show import show

    check_positive("--frames", options.frames)
    counts = show(
        options.data,
        options.out,
        split=options.split,
        options=parse_source_options({}, options.set),
        frames=options.frames,
    )
    print("\n".join(f"{name}: {count} frames" for name, count in counts.items()))
    print(f"wrote {options.out}")
