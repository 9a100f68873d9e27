"""The dashboard's queries and all rules, against a real Prometheus that watches a real run."""

import math
import time
from pathlib import Path

import pytest
from micro_model import write_micro_model
from monitoring import RULES, Query, read_queries, read_rules
from observed_run import (
    POLL_S,
    Prometheus,
    find_prometheus,
    held,
    read_events,
    start_run,
    wait_until,
    watch,
)
from patience import HANG_S

# Rates need samples before and after; the series of an update's parts begin with the first one.
UPDATES_SCRAPED = 3


@pytest.mark.slow
def test_every_panel_shows_data_of_a_run_and_no_alert_fires(tmp_path: Path) -> None:
    program = find_prometheus()
    write_micro_model(tmp_path / "model")
    run_dir = tmp_path / "run"
    targets = {name: run_dir / name / "endpoints.json" for name in ("agent", "learner")}
    more = "learner.algorithm.iterations_per_task=8"
    with start_run(run_dir, tmp_path / "model", more) as run:
        wait_until(lambda: all(p.exists() for p in targets.values()), "both serve metrics", run)
        with watch(program, tmp_path / "prometheus", targets, RULES) as prometheus:
            scraped: set[int] = set()
            while len(scraped) < UPDATES_SCRAPED:
                with held(run, "sim_bridge"):
                    scraped.add(wait_for_scrape(prometheus, run_dir))
                count = max(scraped)
                wait_until(lambda count=count: count_updates(run_dir) > count, "an update", run)
            # Without its simulator the run stands still, and all of its processes are there.
            with held(run, "sim_bridge"):
                deadline_s = time.monotonic() + HANG_S
                empty = read_queries()
                while empty and time.monotonic() < deadline_s:
                    time.sleep(POLL_S)
                    empty = [query for query in empty if not has_data(prometheus, query)]
                assert not empty, "\n".join(f"{query.where}: {query.promql}" for query in empty)
                expect_healthy_rules(prometheus)
                assert prometheus.query('ALERTS{alertstate="firing"}') == {}


def count_updates(run_dir: Path) -> int:
    """Updates that the learner has published so far."""
    return len(read_events(run_dir, "iteration"))


def wait_for_scrape(prometheus: Prometheus, run_dir: Path) -> int:
    """Until both processes were scraped after the last update; returns how many there were."""
    deadline_s = time.monotonic() + HANG_S
    while True:
        count = count_updates(run_dir)
        updates = prometheus.query("max(perennial_grpo_updates_total)")
        if updates == prometheus.query("max(perennial_adapter_version)") == {(): count}:
            return count
        assert time.monotonic() < deadline_s, f"expected {count} updates scraped, got {updates}"
        time.sleep(POLL_S)


def has_data(prometheus: Prometheus, query: Query) -> bool:
    """Whether a panel has at least one number to show."""
    if query.is_instant:
        values = list(prometheus.query(query.promql).values())
    else:
        values = prometheus.query_range(query.promql, HANG_S)
    return any(map(math.isfinite, values))


def expect_healthy_rules(prometheus: Prometheus) -> None:
    """All of them were evaluated, none with an error: one in a join shows only with real series."""
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(read_rules("alert")) + len(read_rules("record"))
    assert {rule["health"] for rule in rules} == {"ok"}, [
        f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] != "ok"
    ]
