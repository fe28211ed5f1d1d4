# SPDX-License-Identifier: Apache-2.0
"""Words of the diagnostics."""

from __future__ import annotations

import pytest

from vmloc_ros.runtime.health import describe_delay


@pytest.mark.parametrize(
    ("delay_ms", "text"),
    [
        (12.34, "12.3"),
        (-8.0, "-8.0"),
        (59_000.0, "59000.0"),
        (90_000.0, "clocks differ by 1.5 minutes"),
        (-7_200_000.0, "clocks differ by 2.0 hours"),
        (3 * 86_400_000.0, "clocks differ by 3.0 days"),
        (78_828_049_902.8, "clocks differ by 2.5 years"),
    ],
)
def test_a_delay_that_no_queue_has_is_a_difference_of_clocks(delay_ms: float, text: str) -> None:
    assert describe_delay(delay_ms) == text
