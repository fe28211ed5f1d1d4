# SPDX-License-Identifier: Apache-2.0
"""Waiting for the outcome of the next frame."""

from __future__ import annotations

import threading

from vmloc_ros.runtime.outcomes import Outcome, OutcomeWaiters


def test_everyone_who_waits_gets_the_next_outcome_and_no_later_one() -> None:
    waiters = OutcomeWaiters()
    assert not waiters.is_awaited
    waiters.resolve(Outcome(False, "before anyone waited"))
    futures = [waiters.expect() for _ in range(2)]
    assert waiters.is_awaited
    waiters.resolve(Outcome(True, "first"))
    waiters.resolve(Outcome(False, "second"))
    assert [future.result(0) for future in futures] == [(True, "first")] * 2
    assert not waiters.is_awaited


def test_a_waiter_that_gave_up_gets_nothing() -> None:
    waiters = OutcomeWaiters()
    impatient, patient = waiters.expect(), waiters.expect()
    waiters.give_up(impatient)
    waiters.resolve(Outcome(True, "pose"))
    waiters.give_up(patient)  # too late: does nothing
    assert not impatient.done()
    assert patient.result(0).published


def test_every_waiter_of_many_threads_gets_exactly_one_outcome() -> None:
    waiters, results = OutcomeWaiters(), []

    def wait() -> None:
        for _ in range(100):
            results.append(waiters.expect().result(10).text)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        waiters.resolve(Outcome(True, "pose"))
    assert results == ["pose"] * 400
