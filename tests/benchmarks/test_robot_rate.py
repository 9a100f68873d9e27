"""What the robots' benchmark starts and how it reports, on figures that are known."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.robot_rate import ALONE, LEARNER, ROBOTS, Row, Stop, render
from sim_bridge.robots.clock import TickReport
from sim_bridge.robots.config import LimitsConfig, RobotConfig
from sim_bridge.robots.figures import Figures
from sim_bridge.robots.guard import Guard, make_limits
from sim_bridge.robots.playback import Playback


@pytest.fixture
def summary() -> dict[str, object]:
    ticks = TickReport(0.05)
    for lateness_s in (0.001, 0.002, 0.003):
        ticks.add(lateness_s)
    figures = Figures(20.0, ticks, Guard(make_limits(LimitsConfig(), 7)))
    for delays in ([1, 2], [6]):
        playback = Playback(5, 3)
        playback.delays_ticks += delays
        figures.begin(playback)
    figures.counts.update(executed=2, held=1, watchdog_trips=4)
    return figures.summary()


def test_what_a_robot_sums_up_is_what_the_report_says(summary: dict[str, object]) -> None:
    rows = [Row("replay", ALONE, 3, summary), Row("replay", LEARNER, 3, summary, 0.875)]
    text = render(rows, Stop(3.0, ["holding", "going on"], 200, "timeout", summary))
    cells = "3 | 2.00 | 2.98 | 3.00 | 0 | 1 | 3 | 0 | 3.00 | 6 | 6 |"
    assert f"| replay | none |  | {cells}" in text
    assert f"| replay | learner | 0.88 | {cells}" in text
    assert "Watchdog trips: 4" in text
    assert "holding\ngoing on" in text


@pytest.mark.parametrize("name", ROBOTS)
def test_every_robot_has_settings_that_exist(name: str) -> None:
    keys = {word.lstrip("+").partition("=")[0].partition(".")[0] for word in ROBOTS[name]}
    assert keys <= {field.name for field in dataclasses.fields(RobotConfig)}
