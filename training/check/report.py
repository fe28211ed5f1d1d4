# SPDX-License-Identifier: Apache-2.0
"""Findings as a table to read, and as JSON."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from training.check.findings import LEVELS, Finding
from training.check.run import Report
from training.output import text_table

_TEXT_WIDTH = 88


def report_text(report: Report) -> str:
    """A table of what was found, the most serious first; then what to do, in the same order."""
    findings = _summarized(report.findings)
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
        loud = finding.level in ("warning", "error")
        rows.append((finding.level.upper() if loud else finding.level, finding.topic, text, mark))
    table = text_table(("", "checked", "found", "do"), rows)
    counts = ", ".join(
        f"{n} {level}{'s' if n != 1 and level != 'ok' else ''}"
        for level in reversed(LEVELS)
        if (n := sum(finding.level == level for finding in findings))
    )
    return "\n".join([table, *(["", "What to do:", *remedies] if remedies else []), "", counts])


def _summarized(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, with what is in order in several recordings told once."""
    by_topic: dict[str, list[Finding]] = {}
    order: list[str | Finding] = []
    for finding in findings:
        if finding.level != "ok" or not finding.recording:
            order.append(finding)
            continue
        if finding.topic not in by_topic:
            order.append(finding.topic)
        by_topic.setdefault(finding.topic, []).append(finding)
    found = []
    for one in order:
        found += [one] if isinstance(one, Finding) else _together(by_topic[one])
    return found


def _together(findings: Sequence[Finding]) -> list[Finding]:
    """The first recording's findings of a topic, and in how many others it is in order."""
    first = [finding for finding in findings if finding.recording == findings[0].recording]
    others = len({finding.recording for finding in findings}) - 1
    if not others:
        return first
    return [replace(finding, text=f"{finding.text} ({others} more recordings are in order)") for finding in first]


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
