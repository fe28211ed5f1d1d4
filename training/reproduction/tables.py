# SPDX-License-Identifier: Apache-2.0
"""Tables of our figures beside the paper's, as Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluation.corruption import MASKED, MISSING, ZEROED
from training.evaluation.tables import Metrics, mean_and_std
from training.output import markdown_table, write_csv, write_text
from training.reproduction.experiments import CLEAN, Comparison, Condition, Errors, Experiment

_WORDS = {MASKED: "masked", MISSING: "missing", ZEROED: "zeroed"}
_AVERAGE = "average"
_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Line:
    """A variant's results on one row of the data with one input.

    Attributes:
        row: scene or sequence.
        seeds: of the runs that have results, in the order of ``metrics``.
        why_not: the reason where there are no results.
    """

    scene: str
    row: str
    variant: str
    condition: Condition
    seeds: tuple[int, ...]
    metrics: tuple[Metrics, ...]
    why_not: str = ""

    def mean(self, key: str) -> float:
        return mean_and_std(self.metrics).mean[key]

    def std(self, key: str) -> float | None:
        """Sample standard deviation over seeds; None with a single one."""
        return mean_and_std(self.metrics).std.get(key)


def input_name(condition: Condition, range_name: str) -> str:
    """Such as ``lidar missing``."""
    if condition is None:
        return CLEAN
    return f"{range_name if condition.modality == 'range' else condition.modality} {_WORDS[condition.level]}"


def scene_table(lines: Sequence[Line], experiment: Experiment, range_name: str) -> str:
    """Markdown table; columns that would be empty or have one value throughout are absent."""
    key, has_paper = experiment.statistic, any(_paper(experiment, line) for line in lines)
    inputs, rows = {line.condition for line in lines} != {None}, len({line.row for line in lines}) > 1
    columns: list[tuple[str, Callable[[Line], str]]] = [("system", lambda line: line.variant)]
    if inputs:
        columns.insert(0, ("input", lambda line: input_name(line.condition, range_name)))
    if rows:
        columns.insert(0, ("data", lambda line: line.row))
    for index, (what, unit) in enumerate((("position", "m"), ("rotation", "deg"))):
        metric = f"{key}_{what}_{unit}"
        columns.append((f"{key} {what} ({unit})", lambda line, metric=metric: _cell(line, metric)))
        if experiment.tail:
            columns.append((f"95 % ({unit})", lambda line, metric=f"p95_{what}_{unit}": _cell(line, metric)))
        if has_paper:
            columns.append(("paper", lambda line, index=index: _paper_cell(_paper(experiment, line), index)))
    columns.append(("seeds", lambda line: str(len(line.seeds)) if line.seeds else line.why_not))
    labels = 1 + inputs + rows
    return markdown_table(
        [title for title, _ in columns], [[cell(line) for _, cell in columns] for line in lines], labels=labels
    )


def averages(lines: Sequence[Line]) -> list[Line]:
    """Averages over the rows, for each variant and input that has the same seeds on every row."""
    rows = dict.fromkeys(line.row for line in lines)
    if len(rows) < 2:
        return []
    result = []
    for variant, condition in dict.fromkeys((line.variant, line.condition) for line in lines):
        parts = [line for line in lines if (line.variant, line.condition) == (variant, condition)]
        seeds = parts[0].seeds
        if not seeds or len(parts) < len(rows) or any(part.seeds != seeds for part in parts):
            continue
        metrics = tuple(mean_and_std([part.metrics[i] for part in parts]).mean for i in range(len(seeds)))
        result.append(Line(_AVERAGE, "+".join(rows), variant, condition, seeds, metrics))
    return result


def comparisons_table(lines: Sequence[Line], comparisons: Sequence[Comparison], statistic: str) -> str:
    """Differences of errors with their standard error over seeds; empty where nothing can be compared."""
    known = {(line.variant, line.condition): line for line in lines if line.seeds}
    keys = (f"{statistic}_position_m", f"{statistic}_rotation_deg")
    rows = [
        [text, *(_ratio(known[first], known[second], key) for key in keys)]
        for text, first, second in comparisons
        if first in known and second in known
    ]
    if not rows:
        return ""
    return markdown_table(["the first's error by the second's", "position (m)", "rotation (deg)"], rows, labels=1)


def _ratio(first: Line, second: Line, key: str) -> str:
    """Ratio of the means over seeds, with its standard error (to first order) where both have several seeds."""
    ratio = first.mean(key) / second.mean(key)
    relative = [(line.std(key), line.mean(key) * math.sqrt(len(line.seeds))) for line in (first, second)]
    errors = [std / by for std, by in relative if std is not None]
    return f"{ratio:.2f} ± {ratio * math.hypot(*errors):.2f}" if len(errors) == 2 else f"{ratio:.2f}"


def _decimals(value: float) -> int:
    """Number of decimals for three significant digits, at most three."""
    return min(3, max(0, 2 - math.floor(math.log10(value)))) if value > 0 else 3


def _cell(line: Line, key: str) -> str:
    if not line.metrics:
        return _ABSENT
    mean, std = line.mean(key), line.std(key)
    text = f"{mean:.{_decimals(mean)}f}"
    return text if std is None else f"{text} ± {std:.{_decimals(mean)}f}"


def _paper(experiment: Experiment, line: Line) -> Errors | None:
    """The paper's figures of a line; those of an average are over the same rows, None if one is not in the paper."""
    found = [experiment.paper.get((row, line.variant, line.condition)) for row in line.row.split("+")]
    known = [errors for errors in found if errors is not None]
    if len(known) < len(found):
        return None
    degrees = [errors[1] for errors in known if errors[1] is not None]
    metres = float(np.mean([errors[0] for errors in known]))
    return metres, float(np.mean(degrees)) if len(degrees) == len(known) else None


def _paper_cell(errors: Errors | None, index: int) -> str:
    value = errors[index] if errors else None
    return _ABSENT if value is None else f"{value:.4g}"


def write_table(
    folder: Path, name: str, text: str, lines: Sequence[Line], experiment: Experiment, record: Mapping[str, Any]
) -> None:
    """Write ``<name>.md``, ``.csv`` (a row for each seed, their mean and deviation) and ``.json``.

    Raises:
        OutputError: a file cannot be written.
    """
    write_text(folder / f"{name}.md", text)
    values = [_as_mapping(line, experiment) for line in lines]
    write_text(folder / f"{name}.json", json.dumps({**record, "results": values}, indent=2) + "\n")
    write_csv(folder / f"{name}.csv", list(_csv_rows(lines, experiment)))


def _as_mapping(line: Line, experiment: Experiment) -> dict[str, Any]:
    row = mean_and_std(line.metrics) if line.metrics else None
    return {
        **_labels(line),
        "seeds": list(line.seeds),
        "mean": row.mean if row else {},
        "std": row.std if row else {},
        "paper": _paper(experiment, line),
        **({"why_not": line.why_not} if line.why_not else {}),
    }


def _csv_rows(lines: Sequence[Line], experiment: Experiment) -> Iterator[dict[str, Any]]:
    for line in lines:
        paper = _paper(experiment, line) or ("", "")
        labels = {**_labels(line), "paper_position_m": paper[0], "paper_rotation_deg": paper[1]}
        for seed, metrics in zip(line.seeds, line.metrics, strict=True):
            yield {**labels, "seed": seed, **metrics}
        if line.metrics:
            row = mean_and_std(line.metrics)
            yield {**labels, "seed": "mean", **row.mean}
            if row.std:
                yield {**labels, "seed": "std", **row.std}


def _labels(line: Line) -> dict[str, str]:
    return {"scene": line.scene, "row": line.row, "system": line.variant, "input": input_name(line.condition, "range")}
