"""Ticks come when they are due; what was overslept is missed and told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim_bridge.robots.clock import FixedRate


class FakeClock:
    """Time passes by sleeping and by `spend`."""

    def __init__(self, oversleep_s: float = 0.0) -> None:
        self.now_s, self.oversleep_s = 100.0, oversleep_s

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s + self.oversleep_s


@given(st.lists(st.floats(0.0, 0.4), min_size=1, max_size=40))
def test_every_tick_is_taken_or_missed_and_never_early(work_s: list[float]) -> None:
    clock = FakeClock()
    rate = FixedRate(20.0, clock, clock.sleep)
    ticks = []
    for spent_s in work_s:
        ticks.append(rate.wait())
        assert clock.now_s >= 100.0 + ticks[-1] * 0.05 - 1e-9
        clock.now_s += spent_s
    assert ticks == sorted(set(ticks))
    summary = rate.report.summary()
    assert summary["ticks"] == len(ticks)
    assert summary["missed"] == ticks[-1] + 1 - len(ticks)


def test_a_tick_that_takes_too_long_costs_whole_ticks_and_no_drift() -> None:
    clock = FakeClock()
    rate = FixedRate(20.0, clock, clock.sleep)
    assert [rate.wait(), rate.wait()] == [0, 1]
    clock.now_s += 0.17  # 3.4 periods
    assert rate.wait() == 4, "ticks 2 and 3 had gone by"
    assert rate.report.missed == 2
    assert rate.report.summary()["lateness_max_s"] == pytest.approx(0.02)
    assert rate.wait() == 5
    assert clock.now_s == pytest.approx(100.25)


def test_lateness_is_what_the_sleep_adds() -> None:
    clock = FakeClock(oversleep_s=0.01)
    rate = FixedRate(20.0, clock, clock.sleep)
    for _ in range(10):
        rate.wait()
    summary = rate.report.summary()
    assert summary["lateness_max_s"] == pytest.approx(0.01)
    assert summary["late"] == 9, "the first tick is now"


def test_what_lies_between_two_episodes_was_not_missed() -> None:
    clock = FakeClock()
    rate = FixedRate(20.0, clock, clock.sleep)
    rate.wait()
    clock.now_s += 3.0  # the robot goes back to its start
    rate.restart()
    assert [rate.wait(), rate.wait()] == [0, 1]
    assert clock.now_s == pytest.approx(103.05)
    summary = rate.report.summary()
    assert (summary["ticks"], summary["missed"]) == (3, 0)


def test_lateness_is_told_in_totals() -> None:
    clock = FakeClock(oversleep_s=0.004)
    rate = FixedRate(20.0, clock, clock.sleep)
    for _ in range(11):
        rate.wait()
    totals = rate.report.tally.totals()
    told = [totals[f"tick_lateness_seconds_le_{bound}"] for bound in ("0.0025", "0.005", "inf")]
    assert told == [1, 11, 11]
    assert totals["tick_lateness_seconds_sum"] == pytest.approx(0.04)
