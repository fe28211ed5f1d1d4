# SPDX-License-Identifier: Apache-2.0
"""The ``vmloc`` command line: parses and calls a command; errors become one line and exit code 1."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from training.commands.calibrate import add_calibrate
from training.commands.check import add_check
from training.commands.confidence import add_confidence
from training.commands.convert import add_convert
from training.commands.demo import add_demo
from training.commands.evaluate import add_evaluate
from training.commands.extrinsics import add_extrinsics
from training.commands.info import add_info
from training.commands.models import add_models
from training.commands.replay import add_replay
from training.commands.reproduce import add_reproduce
from training.commands.show import add_show
from training.commands.simulate import add_simulate
from training.commands.train import add_train
from training.trainer.interruption import Terminated
from vmloc_ros import __version__
from vmloc_ros.core.errors import VmlocError

_COMMANDS = (
    add_simulate,
    add_convert,
    add_check,
    add_show,
    add_extrinsics,
    add_train,
    add_evaluate,
    add_calibrate,
    add_confidence,
    add_reproduce,
    add_replay,
    add_models,
    add_info,
    add_demo,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the return value is the exit code."""
    # Before torch is imported: spinning OpenMP threads make a busy machine many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Of torchrun's processes only the first one logs INFO.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except VmlocError as error:
        print(f"vmloc {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        hint = getattr(options, "interrupt_hint", "")
        print(f"vmloc {options.command}: interrupted{hint}", file=sys.stderr)
        return 143 if isinstance(interrupt, Terminated) else 130
    except BrokenPipeError:  # `vmloc info ... | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # the machine's: a full disk, a folder without permission
        print(f"vmloc {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmloc", description="Train, evaluate and try out localization models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in _COMMANDS:
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
