# SPDX-License-Identifier: Apache-2.0
"""``vmloc info``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from training.commands import add_command


def add_info(commands: Any) -> None:
    """``vmloc info``."""
    parser = add_command(commands, "info", _info, "Print what a checkpoint holds.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--json", action="store_true", help="for programs: the header alone, as JSON")


def _info(options: argparse.Namespace) -> None:
    from training.info import checkpoint_text
    from vmloc_ros.core.checkpoint import read_header
    from vmloc_ros.core.config import to_mapping

    if options.json:
        print(json.dumps(to_mapping(read_header(options.checkpoint)), indent=2))
    else:
        print(checkpoint_text(options.checkpoint))
