"""The arithmetic of the iteration benchmark, on counters whose differences are known."""

from dataclasses import replace

import pytest

from agent.metrics import AgentMetrics
from benchmarks.iteration import (
    OTHERS,
    SUPERVISOR,
    Breakdown,
    Sample,
    break_down,
    process_name,
    read_stages,
    render,
)

SIMULATE, RENDER = ("worker", "simulate"), ("worker", "render")
WAIT, INFER = ("worker", "wait for actions"), ("agent", "infer")
BEFORE = Sample(
    100.0,
    {SIMULATE: 1.0, RENDER: 2.0, WAIT: 3.0, INFER: 4.0},
    {"agent": 10.0, "learner": 20.0, OTHERS: 1000.0},
)
AFTER = Sample(
    120.0,
    {SIMULATE: 3.0, RENDER: 8.0, WAIT: 11.0, INFER: 20.0},
    {"agent": 26.0, "learner": 30.0, OTHERS: 1001.0},
)
EVENTS = [
    {"trials": 64, "time_s": {"wait": 6.0, "learn": 2.0, "publish": 1.0}},
    {"trials": 96, "time_s": {"wait": 7.0, "learn": 3.0, "publish": 0.5}},
]


@pytest.fixture
def average() -> Breakdown:
    return break_down(BEFORE, AFTER, EVENTS)


def test_counters_become_seconds_of_an_average_iteration(average: Breakdown) -> None:
    assert (average.iterations, average.wall_s, average.episodes) == (2, 10.0, 80.0)
    assert average.stages_s == pytest.approx({
        SIMULATE: 1.0, RENDER: 3.0, WAIT: 4.0, ("worker", "rest"): 2.0, INFER: 8.0,
        ("learner", "learn"): 2.5, ("learner", "publish"): 0.75,
        ("learner", "wait for episodes"): 6.5, ("learner", "rest"): 0.25,
    })  # fmt: skip
    assert average.cpu_s == pytest.approx({"agent": 8.0, "learner": 5.0, OTHERS: 0.5})


@pytest.mark.parametrize("process", ["worker", "learner"])
def test_the_stages_of_a_single_threaded_process_fill_the_iteration(
    average: Breakdown, process: str
) -> None:
    spent_s = [seconds for (of, _), seconds in average.stages_s.items() if of == process]
    assert sum(spent_s) == pytest.approx(average.wall_s)


def test_a_process_that_was_started_again_spoils_the_measurement() -> None:
    restarted = replace(AFTER, cpu_s={**AFTER.cpu_s, "agent": 0.5})
    with pytest.raises(ValueError, match="started again"):
        break_down(BEFORE, restarted, EVENTS)


def test_the_report_names_every_stage_with_its_share_and_sums_the_cores(
    average: Breakdown,
) -> None:
    report = render(average, {"torch": "2.0", "peft": "not installed"})
    assert "| worker | render | 3.00 | 30% |" in report
    assert "| agent | infer | 8.00 | 80% |" in report
    assert "| learner | wait for episodes | 6.50 | 65% |" in report
    assert "| the run together | 13.00 | 1.30 |" in report
    assert f"| {OTHERS} | 0.50 | 0.05 |" in report
    assert "torch 2.0." in report


def test_stages_are_read_from_what_the_agent_exports() -> None:
    metrics = AgentMetrics()
    metrics.inference_busy_seconds_total.inc(7.5)
    for part, seconds in (("step", 1), ("render", 2), ("wait", 3)):
        metrics.sim_seconds_total.labels(part).inc(seconds)
    found = read_stages(metrics.text().decode())
    assert found == {SIMULATE: 1, RENDER: 2, WAIT: 3, INFER: 7.5}
    with pytest.raises(ValueError, match="sim_seconds"):
        read_stages("")


def test_a_process_is_called_after_its_settings() -> None:
    assert process_name(["python", "-m", "agent", "--config", "/r/config/sim-0.yaml"]) == "sim-0"
    assert process_name(["python", "-m", "deploy.local.run", "seed=1"]) == SUPERVISOR
