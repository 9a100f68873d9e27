"""A real Prometheus scrapes agent and learner during a run and answers a person's questions."""

import signal
from collections import Counter
from pathlib import Path

import pytest
from micro_model import write_micro_model
from observed_run import (
    Prometheus,
    find_prometheus,
    held,
    read_events,
    start_run,
    wait_until,
    watch,
)

from deploy.local.tail import JsonTail

TASKS = 3  # of the toy suite: two trained, one held out


def test_a_missing_prometheus_is_skipped_but_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        find_prometheus()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception):
        find_prometheus()


@pytest.mark.slow
def test_prometheus_tells_success_version_and_latency_of_a_run(tmp_path: Path) -> None:
    program = find_prometheus()
    write_micro_model(tmp_path / "model")
    run_dir = tmp_path / "run"
    targets = {name: run_dir / name / "endpoints.json" for name in ("agent", "learner")}
    with start_run(run_dir, tmp_path / "model") as run:
        wait_until(lambda: all(p.exists() for p in targets.values()), "both serve metrics", run)
        with watch(program, tmp_path / "prometheus", targets) as prometheus:
            # The simulator is held, so that the learner goes on only when it has been scraped.
            wait_until(lambda: len(base_row(run_dir)) == TASKS, "the base was evaluated", run)
            with held(run, "sim_bridge"):
                gauge = 'perennial_eval_success_rate{row="0",mode="rollout"}'
                prometheus.expect(f"max by (task) ({gauge})", base_row(run_dir))
                prometheus.expect("count(perennial_learner_state == 1)", {(): 1.0})
            # A supervisor that is held cannot stop the agent when the learner has ended, so the
            # last figures are there to be scraped however slow the machine is.
            run.send_signal(signal.SIGSTOP)
            wait_until(lambda: read_events(run_dir, "done") != [], "the learner had ended", run)
            try:
                ask_what_a_person_asks(prometheus, run_dir)
            finally:
                run.send_signal(signal.SIGCONT)
            wait_until(lambda: run.poll() is not None, "the run was over", run)
            assert run.returncode == 0, run_dir.with_suffix(".log").read_text()[-2000:]


def ask_what_a_person_asks(prometheus: Prometheus, run_dir: Path) -> None:
    """Success per task, version and latency; over the last hour, as the learner is gone."""
    ask = prometheus.query

    # Per-task success in training equals the clients' own count.
    episodes = 'perennial_episodes_total{phase="train",outcome%s}[1h]'
    won = "sum by (task) (max_over_time(%s))" % (episodes % '="success"')
    ended = "sum by (task) (max_over_time(%s))" % (episodes % '!="aborted"')
    prometheus.expect(
        f"({won} or 0 * {ended}) / {ended}",
        {(task,): rate for task, rate in train_success(run_dir).items()},
    )
    rates = ask('max_over_time(perennial_task_success_rate{window="20"}[1h])')
    assert rates
    assert all(0 <= rate <= 1 for rate in rates.values())

    # The version served last, as number and as name.
    iterations = read_events(run_dir, "iteration")
    prometheus.expect("max(max_over_time(perennial_adapter_version[1h]))", {(): len(iterations)})
    versions = ask("max by (version) (max_over_time(perennial_adapter_info[1h]))")
    assert versions[(iterations[-1]["version"],)] == 1

    # Request latency: how many, and the median.
    latency = 'perennial_request_duration_seconds_%s{stage="total"}'
    (requests,) = ask(f"last_over_time({latency % 'count'}[1h])").values()
    assert requests > 0
    buckets = f"sum by (le) (last_over_time({latency % 'bucket'}[1h]))"
    (median_s,) = ask(f"histogram_quantile(0.5, {buckets})").values()
    assert median_s > 0


def base_row(run_dir: Path) -> dict[tuple[str, ...], float]:
    """Success of the base by task, as the learner has logged it so far."""
    rows = read_events(run_dir, "eval")
    return {(e["task"],): e["successes"] / e["trials"] for e in rows
            if e["row"] == 0 and e["mode"] == "rollout"}  # fmt: skip


def train_success(run_dir: Path) -> dict[str, float]:
    """Success rate of each task's training episodes by the simulator's log."""
    lines = JsonTail(run_dir / "sim-0" / "client.jsonl").read()
    ends = [line for line in lines if line.get("phase") == "train"]
    trials = Counter(end["task"] for end in ends)
    wins = Counter(end["task"] for end in ends if end["outcome"] == "success")
    return {task: wins[task] / count for task, count in trials.items()}
