# SPDX-License-Identifier: Apache-2.0
"""Findings as a table to read, and as JSON."""

from __future__ import annotations

import json
import math
import textwrap
from typing import Any

from training.check.clocks import summarized
from training.check.findings import LEVELS, Finding
from training.check.run import Report
from training.output import text_table

_TEXT_WIDTH = 88


def report_text(report: Report) -> str:
    """A table of what was found, the most serious first; then what to do, in the same order."""
    findings = summarized(report.findings)
    several = len({f.recording for f in report.findings if f.recording}) > 1
    rows, remedies, number = [], [], 0
    for finding in findings:
        mark = ""
        if finding.remedy:
            number += 1
            mark = str(number)
            remedies.append(_wrapped(f"{number}. {finding.topic}: {finding.remedy}", "   "))
        whose = f"{finding.recording}: " if several and finding.recording else ""
        text = textwrap.fill(f"{whose}{finding.text}", _TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)
        rows.append((finding.level if finding.level != "warning" else "WARNING", finding.topic, text, mark))
    rows = [(level.upper() if level == "error" else level, *rest) for level, *rest in rows]
    table = text_table(("", "checked", "found", "do"), rows)
    counts = ", ".join(
        f"{n} {level}{'s' if n != 1 and level != 'ok' else ''}"
        for level in reversed(LEVELS)
        if (n := sum(finding.level == level for finding in findings))
    )
    return "\n".join([table, *(["", "What to do:", *remedies] if remedies else []), "", counts])


def _wrapped(text: str, indent: str) -> str:
    # Commands to type are not broken: they are to be copied.
    return textwrap.fill(
        text, _TEXT_WIDTH + 20, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def report_json(report: Report) -> str:
    """All findings, with their values; what is not a finite number is null."""
    rows = [_row(finding) for finding in report.findings]
    return json.dumps({"failed": report.failed, "findings": rows}, indent=2) + "\n"


def _row(finding: Finding) -> dict[str, Any]:
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in finding.values.items()
    }
    return {
        "level": finding.level,
        "topic": finding.topic,
        "recording": finding.recording,
        "text": finding.text,
        "remedy": finding.remedy,
        "values": values,
    }
