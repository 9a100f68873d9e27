"""The LIBERO reports: gains are paired by state, and a missed mark is called missed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from benchmarks.libero.cost import IMAGE_SIZES, WAYS, Cost
from benchmarks.libero.cost import report as report_cost
from benchmarks.libero.expert import EPISODES, Row
from benchmarks.libero.expert import report as report_expert
from benchmarks.libero.learning import GREEDY, ROLLOUT, Outcomes


def end(row: int, state: int, slot: int, success: bool, counted: bool = True) -> dict:
    return {
        "slot_id": f"eval/{row}/rollout/push/{state}#{slot}",
        "phase": "eval",
        "counted": counted,
        "outcome": "success" if success else "timeout",
    }


@pytest.fixture
def outcomes() -> Outcomes:
    """Four states of two slots each: every state gains one success, whatever it began with."""
    before = {0: (0, 0), 1: (0, 0), 2: (0, 1), 3: (0, 1)}
    after = {0: (0, 1), 1: (1, 0), 2: (1, 1), 3: (1, 1)}
    ends = [
        end(row, state, slot, bool(success))
        for row, states in ((0, before), (2, after))
        for state, slots in states.items()
        for slot, success in enumerate(slots)
    ]
    ends.append(end(2, 0, 0, True, counted=False))  # aborted, and leased again
    return Outcomes.from_records(SimpleNamespace(ends=ends))  # type: ignore[arg-type]


def test_a_gain_is_paired_by_state(outcomes: Outcomes) -> None:
    gain = outcomes.gain(2, ROLLOUT, ["push"])
    assert gain is not None
    assert (gain.value, gain.error, gain.pairs) == (0.5, 0.0, 4), "states differ, gains do not"
    assert outcomes.rate(0, ROLLOUT, "push").value == 0.25
    assert outcomes.rate(2, ROLLOUT, "push").trials == 8, "what was not counted is left out"


def test_a_gain_that_differs_between_states_is_uncertain(outcomes: Outcomes) -> None:
    outcomes.of[2, ROLLOUT, "push"][3] = [False, False]
    gain = outcomes.gain(2, ROLLOUT, ["push"])
    assert gain is not None
    assert gain.value == pytest.approx(0.25)
    assert gain.error == pytest.approx(math.sqrt((3 * 0.25**2 + 0.75**2) / 3 / 4))
    low, high = gain.interval
    assert low < 0 < gain.value < high


def test_what_was_not_measured_has_no_gain(outcomes: Outcomes) -> None:
    assert outcomes.gain(2, GREEDY, ["push"]) is None
    assert outcomes.gain(1, ROLLOUT, ["push"]) is None


@pytest.mark.parametrize(("episode_s", "verdict"), [(1.0, "reached everywhere"), (3.0, "missed")])
def test_the_cost_report_compares_with_the_distribution(episode_s: float, verdict: str) -> None:
    costs = {
        (way, size): Cost(5.0, 0.01, 0.03, 10.0 if way == "distribution" else episode_s, 60, 7)
        for way in WAYS
        for size in IMAGE_SIZES
    }
    text = report_cost(costs, policy_s=0.0)
    assert verdict in text
    assert f"the least is {10 / episode_s:.1f}" in text


@pytest.mark.parametrize(("worst", "verdict"), [(EPISODES, "reached"), (EPISODES - 2, "MISSED")])
def test_the_expert_report_judges_its_worst_task(worst: int, verdict: str) -> None:
    rows = [Row("s", task, n, 60, 80, 5.0, 1.0, 1.0) for task, n in (("a", 20), ("b", worst))]
    text = report_expert(rows, workers=2, total_s=30.0)
    assert f"on every task: {verdict}" in text
    assert "**7,200 episodes an hour**" in text
