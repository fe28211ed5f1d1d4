# SPDX-License-Identifier: Apache-2.0
"""Logs of a training run: a CSV file with a row per epoch, and optionally TensorBoard event files."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vmloc_ros.core.errors import ConfigError, DataError, OutputError
from vmloc_ros.core.files import write_aside

Row = Mapping[str, float]


class Logbook:
    """Writer of a run's logs. The CSV file is rewritten after each epoch, so that later epochs may add columns.

    Args:
        file: the CSV file.
        events: folder of TensorBoard's event files; None writes none.
        epoch: epochs finished before; later entries of existing files are removed.
        step: steps finished before.

    Raises:
        ConfigError: event files are requested, but TensorBoard is not installed.
        DataError: the CSV file of earlier epochs is damaged.
        OutputError: a file cannot be written, here or in a method.
    """

    def __init__(self, file: Path, events: Path | None, epoch: int, step: int) -> None:
        self._file = file
        self._rows = _read(file, epoch) if epoch else []
        self._folder = events
        self._events = None if events is None else _writer(events, step)

    def step(self, number: int, values: Row) -> None:
        """Log values of a step to TensorBoard."""
        self._add("step", number, values)

    def epoch(self, number: int, step: int, values: Row) -> None:
        """Log values of an epoch as a CSV row, and to TensorBoard at ``step``, the last step of the epoch."""
        self._rows.append({"epoch": number, **values})
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with write_aside(self._file) as path, path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(self._rows)
        self._add("epoch", step, values)
        if self._events is not None:
            with _written(self._folder):
                self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            with _written(self._folder):
                self._events.close()

    def _add(self, group: str, step: int, values: Row) -> None:
        if self._events is not None:
            with _written(self._folder):
                for name, value in values.items():
                    self._events.add_scalar(f"{group}/{name}", value, step)


def check_tensorboard() -> None:
    """Raise ConfigError where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs the package tensorboard: pip install tensorboard")


def _read(file: Path, epoch: int) -> list[dict[str, Any]]:
    """Rows of the CSV file up to that epoch; none if the file does not exist."""
    try:
        with file.open(newline="") as stream:
            return [row for row in csv.DictReader(stream) if int(row["epoch"]) <= epoch]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{file} is not the log of a training ({error!r}); move it away") from error


@contextmanager
def _written(path: Path | None) -> Iterator[None]:
    """Raise OutputError for an OSError, which may come from TensorBoard's own thread."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error}") from error


def _writer(folder: Path, step: int) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    if step == 0:  # remove event files of an earlier run
        shutil.rmtree(folder, ignore_errors=True)
    with _written(folder):
        return SummaryWriter(str(folder), purge_step=step + 1)
