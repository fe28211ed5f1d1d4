# SPDX-License-Identifier: Apache-2.0
"""The table of costs: medians, ratios with quartiles, and the paper's ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.output import markdown_table
from training.reproduction.cost import Cost, Seconds

REFERENCES = ("poe_vmloc", "attention_vmloc")
_PAPER = {("vmloc, k = 10", "poe_vmloc"): 1.23, ("vmloc, k = 10", "attention_vmloc"): 1.02}


def cost_rows(costs: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """Medians, and ratios to :data:`REFERENCES`, by system; ``answer`` in the keys is a prediction."""
    rows = []
    for key, cost in costs.items():
        row: dict[str, Any] = {
            "system": key,
            "step_ms": 1e3 * float(np.median(cost.steps_s)),
            "answer_ms": 1e3 * float(np.median(cost.predictions_s)),
            "memory_mb": cost.memory_mb,
        }
        for reference in REFERENCES:
            row |= _quartiles(f"step_per_{reference}", cost.steps_s / costs[reference].steps_s)
            row |= _quartiles(f"answer_per_{reference}", cost.predictions_s / costs[reference].predictions_s)
            row[f"paper_step_per_{reference}"] = _PAPER.get((key, reference))
        rows.append(row)
    return rows


def cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown; ratios with quartiles in brackets."""
    ratios = [title for reference in REFERENCES for title in (f"/ {reference}", "paper")]
    table = []
    for row in rows:
        cells = [row["system"], f"{row['step_ms']:.0f}"]
        for reference in REFERENCES:
            cells += [_ratio(row, "step", reference), str(row[f"paper_step_per_{reference}"] or "–")]
        cells.append("–" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}")
        cells += [f"{row['answer_ms']:.1f}", _ratio(row, "answer", "poe_vmloc")]
        table.append(cells)
    titles = ["system", "step (ms)", *ratios, "peak memory (MB)", "prediction (ms)", "/ poe_vmloc"]
    return markdown_table(titles, table, labels=1)


def _ratio(row: Mapping[str, Any], what: str, reference: str) -> str:
    low, median, high = (row[f"{what}_per_{reference}{rank}"] for rank in ("_q25", "", "_q75"))
    return "1" if row["system"] == reference else f"{median:.2f} ({low:.2f}-{high:.2f})"


def _quartiles(name: str, ratios: Seconds) -> dict[str, float]:
    low, median, high = np.percentile(ratios, [25, 50, 75]).tolist()
    return {name: median, f"{name}_q25": low, f"{name}_q75": high}
