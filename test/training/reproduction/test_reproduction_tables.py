# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from helpers import without_padding
from training.reproduction.experiments import EXPERIMENTS, VARIANTS, Comparison, InputCorruption
from training.reproduction.tables import Line, averages, comparisons_table, scene_table

IMAGE_MASKED, IMAGE_MISSING = InputCorruption("image", 1), InputCorruption("image", 2)
RANGE_MASKED, RANGE_MISSING = InputCorruption("range", 1), InputCorruption("range", 2)


def line(row: str, variant: str, *positions_m: float, condition: InputCorruption | None = None) -> Line:
    metrics = tuple({"mean_position_m": x, "mean_rotation_deg": 10 * x} for x in positions_m)
    return Line("loop", row, variant, condition, tuple(range(len(positions_m))), metrics)


@pytest.mark.parametrize(
    ("table", "rows", "system", "metres", "degrees"),
    [
        ("table1", 7, "hourglass", 0.23, 9.53),
        ("table1", 7, "posenet_plus", 0.23, 8.12),
        ("table1", 7, "vidloc", 0.22, None),  # 0.23 in the paper
        ("table1", 7, "mapnet", 0.21, 7.77),
        ("table1", 7, "atloc", 0.20, 7.56),
        ("table1", 7, "vmloc", 0.19, 7.01),
        ("table2", 4, "mapnet", 29.8, 8.68),
        ("table2", 4, "atloc", 23.8, 8.19),
        ("table2", 4, "vmloc", 17.5, 4.92),
        ("table3", 4, "image_vmloc", 23.8, 7.22),  # 23.9 in the paper
        ("table3", 4, "attention_vmloc", 24.2, 6.69),  # 19.3, 5.35
        ("table3", 4, "poe_vmloc", 23.4, 6.45),  # 18.7, 5.16
        ("table3", 4, "vmloc", 17.5, 4.92),
    ],
)
def test_the_papers_averages_follow_from_its_rows(
    table: str, rows: int, system: str, metres: float, degrees: float | None
) -> None:
    """The paper's own averages, but for those that its notes name; a figure copied wrongly would move them."""
    experiment = EXPERIMENTS[table]
    figures = [experiment.paper[row, system, None] for row in experiment.paper_rows]
    assert len(figures) == rows
    step = 0.005 if metres < 1 else 0.05
    assert np.mean([errors[0] for errors in figures]) == pytest.approx(metres, abs=step * 1.1)
    if degrees is None:
        assert all(errors[1] is None for errors in figures)
    else:
        assert np.mean([errors[1] for errors in figures]) == pytest.approx(degrees, abs=0.008)


def test_the_tables_have_all_of_the_papers_figures() -> None:
    for experiment in EXPERIMENTS.values():
        assert set(experiment.variants) <= set(VARIANTS)
        for _, variant, given in experiment.paper:
            assert variant in experiment.variants
            assert given in experiment.inputs_of(variant)
        for _, *sides in experiment.comparisons:
            assert all(given in experiment.inputs_of(variant) for variant, given in sides)
    assert EXPERIMENTS["table4"].paper["FULL2", "vmloc", RANGE_MISSING] == (38.7, 9.70)
    assert ("FULL2", "atloc", IMAGE_MISSING) not in EXPERIMENTS["table4"].paper


def test_figures_stand_beside_the_papers_with_the_seeds_deviation() -> None:
    lines = [line("LOOP1", "vmloc", 7.0, 9.0), line("LOOP1", "depth_vmloc", 0.1234), line("LOOP2", "vmloc")]
    lines[2] = dataclasses.replace(lines[2], why_not="not trained")
    table = without_padding(scene_table(lines, EXPERIMENTS["table3"], "lidar")).splitlines()
    assert table[0] == "| data | system | mean position (m) | paper | mean rotation (deg) | paper | seeds |"
    assert table[2] == "| LOOP1 | vmloc | 8.00 ± 1.41 | 7.7 | 80.0 ± 14.1 | 3.23 | 2 |"
    assert table[3] == "| LOOP1 | depth_vmloc | 0.123 | – | 1.23 | – | 1 |"
    assert table[4] == "| LOOP2 | vmloc | – | 7.76 | – | 3.16 | not trained |"


def test_columns_without_information_are_absent() -> None:
    lines = [line("yard", "vmloc", 1.0), line("yard", "vmloc", 2.0, condition=RANGE_MISSING)]
    table = without_padding(scene_table(lines, EXPERIMENTS["table4"], "lidar")).splitlines()
    assert table[0] == "| input | system | mean position (m) | mean rotation (deg) | seeds |"
    assert table[3] == "| lidar missing | vmloc | 2.00 | 20.0 | 1 |"


def test_averages_are_over_rows_and_beside_the_papers_over_the_same_rows() -> None:
    lines = [
        line("LOOP1", "vmloc", 7.0, 9.0),
        line("LOOP2", "vmloc", 1.0, 2.0),
        line("LOOP1", "poe_vmloc", 5.0),
        line("LOOP2", "poe_vmloc", 5.0, 6.0),  # other seeds: no average
        line("LOOP1", "image_vmloc", 5.0),
    ]
    (average,) = averages(lines)
    assert [metrics["mean_position_m"] for metrics in average.metrics] == [4.0, 5.5]
    text = without_padding(scene_table([average], EXPERIMENTS["table3"], "lidar")).splitlines()[2]
    assert text == "| vmloc | 4.75 ± 1.06 | 7.73 | 47.5 ± 10.6 | 3.195 | 2 |"
    assert averages(lines[:1]) == []


def test_comparisons_give_the_ratio_and_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(3, 0.5, 4), rng.normal(2, 0.3, 3)
    lines = [line("yard", "vmloc", *first), line("yard", "vmloc_k1", *second), line("yard", "image_vmloc", 1.5)]
    questions = (
        Comparison("k", ("vmloc", None), ("vmloc_k1", None)),
        Comparison("image", ("vmloc", None), ("image_vmloc", None)),
        Comparison("depth", ("vmloc", None), ("depth_vmloc", None)),
    )
    table = without_padding(comparisons_table(lines, questions, "mean")).splitlines()
    ratio = first.mean() / second.mean()
    error = ratio * math.sqrt(first.var(ddof=1) / 4 / first.mean() ** 2 + second.var(ddof=1) / 3 / second.mean() ** 2)
    assert table[2] == f"| k | {ratio:.2f} ± {error:.2f} | {ratio:.2f} ± {error:.2f} |"
    assert table[3] == f"| image | {first.mean() / 1.5:.2f} | {first.mean() / 1.5:.2f} |"
    assert len(table) == 4
    assert comparisons_table(lines[2:], questions, "mean") == ""
