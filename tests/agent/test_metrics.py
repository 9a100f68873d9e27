"""The catalogue, the text made of it, and the success figures."""

import logging
import random
import subprocess
import threading
from pathlib import Path

import pytest
from patience import HANG_S
from programs import find_program
from server_fixtures import finish, make_order, observe, post, running, start_own, take_slot

from agent import metric_set
from agent.ledger import ActivationRow, EpisodeRow
from agent.metric_set import PREFIX, declared
from agent.metrics import LABEL_MEANINGS, AgentMetrics, LearnerMetrics
from agent.metrics_page import make_page
from agent.success import BEST_MIN_EPISODES, SuccessRecord, wilson
from agent.wire.messages import Activate, FetchEpisodes

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
SUCCESS_FAMILIES = (
    "episodes_total", "episode_steps", "task_", "eval_", "adapter_staleness_episodes",
    "adapter_activated_timestamp_seconds",
)  # fmt: skip


def sealed(task="reach", outcome="success", **changes) -> EpisodeRow:
    """One row of the ledger, as far as figures are made of it."""
    fields = {
        "episode_id": "", "order_id": "", "slot_id": "", "suite": "toy", "split": "train",
        "init_state": 0, "phase": "train", "version": "base", "state": "sealed", "steps": 40,
        "counted": True, "sha256": "", "size_bytes": 1, "sealed_seq": 1, "sealed_unix_s": 5.0,
        "reason": "",
    }  # fmt: skip
    return EpisodeRow(**{**fields, "task": task, "outcome": outcome, **changes})


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(PREFIX + name, labels)


# ---- the catalogue -------------------------------------------------------------------------------


def test_the_page_is_the_one_made_from_the_catalogue():
    assert PAGE.read_text() == make_page(), "run: python -m agent.metrics_page > docs/metrics.md"


@pytest.mark.parametrize("owner", [AgentMetrics, LearnerMetrics])
def test_every_label_is_a_closed_set_or_has_a_meaning(owner):
    names = [name for _, name, _ in declared(owner)]
    assert len(set(names)) == len(names)
    for _, name, spec in declared(owner):
        assert spec.help, name
        assert (spec.kind == "counter") == name.endswith("_total")
        for label in spec.labels:
            assert "=" in label or label in LABEL_MEANINGS, (name, label)


def test_only_the_agent_tells_success():
    told = {name for _, name, _ in declared(LearnerMetrics)}
    assert not [name for name in told if "success" in name or name.startswith(("task_", "eval_"))]


def test_a_closed_set_is_there_from_the_start_and_an_unknown_value_is_not():
    text = AgentMetrics().text().decode()
    assert 'perennial_watchdog_trips_total{reason="loop_stalled"} 0.0' in text
    assert "\nperennial_oldest_unacked_timestamp_seconds " not in text
    assert "_created" not in text
    assert "\nperennial_grpo_kl " not in LearnerMetrics().text().decode()


# ---- the text ------------------------------------------------------------------------------------


def test_a_broken_collector_costs_its_own_series_only(caplog):
    clock_s = [1000.0]
    metrics = AgentMetrics(lambda: clock_s[0])
    broken = False

    def measure():
        if broken:
            raise OSError("no such disk")
        metrics.disk_free_bytes.labels("state").set(7)

    metrics.add_source("disk", measure, metrics.disk_free_bytes)
    before = metrics.text().decode()
    assert 'perennial_disk_free_bytes{folder="state"} 7.0' in before
    broken = True
    with caplog.at_level(logging.ERROR):
        texts = [metrics.text().decode() for _ in range(3)]
        clock_s[0] += 61.0
        texts.append(metrics.text().decode())
    assert "perennial_disk_free_bytes{" not in texts[0]
    assert 'perennial_collector_errors_total{collector="disk"} 4.0' in texts[-1]
    families = [line for line in before.splitlines() if line.startswith("# TYPE perennial")]
    assert [line for line in texts[0].splitlines() if line.startswith("# TYPE perennial")] == (
        families
    )
    assert sum("disk failed" in record.message for record in caplog.records) == 2
    broken = False
    assert 'perennial_disk_free_bytes{folder="state"} 7.0' in metrics.text().decode()


class Hanging:
    """Measures the disk of one folder, while `gate` is open."""

    def __init__(self, metrics, folder="state") -> None:
        self.gate, self.calls = threading.Event(), 0
        self._metrics, self._folder = metrics, folder
        labels = {"folder": folder}
        metrics.add_source(f"disk_{folder}", self._measure, metrics.disk_free_bytes, **labels)

    def _measure(self) -> None:
        self.calls += 1
        self._metrics.disk_free_bytes.labels(self._folder).set(self.calls)
        assert self.gate.wait(HANG_S)


def free_bytes(metrics) -> dict[str, float]:
    """{folder: value} on one page."""
    lines = metrics.text().decode().splitlines()
    found = [line for line in lines if line.startswith("perennial_disk_free_bytes{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in found}


def test_a_hanging_collector_costs_its_own_series_has_one_thread_and_one_line(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(metric_set, "SOURCE_LIMIT_S", HANG_S)
    metrics = AgentMetrics()
    state, adapters = Hanging(metrics), Hanging(metrics, "adapters")
    state.gate.set()
    adapters.gate.set()
    assert free_bytes(metrics) == {"state": 1, "adapters": 1}
    threads = threading.active_count()
    adapters.gate.clear()
    monkeypatch.setattr(metric_set, "SOURCE_LIMIT_S", 0.5)
    pages = [metrics.text().decode()]
    monkeypatch.setattr(metric_set, "SOURCE_LIMIT_S", HANG_S)  # it is not waited for again
    pages += [metrics.text().decode() for _ in range(4)]
    for page in pages:
        assert 'perennial_disk_free_bytes{folder="adapters"}' not in page
        assert "# TYPE perennial_disk_free_bytes gauge" in page
        assert "\nperennial_open_episodes 0.0" in page
    for number, page in enumerate(pages[1:], start=3):
        assert f'perennial_disk_free_bytes{{folder="state"}} {number}.0' in page
    assert value(metrics, "collector_errors_total", collector="disk_adapters") == 5
    assert adapters.calls == 2
    assert threading.active_count() == threads + 1
    lines = [r.message for r in caplog.records if "disk_adapters" in r.message]
    assert len(lines) == 1
    adapters.gate.set()
    metrics._sources["disk_adapters"].last.join(HANG_S)
    assert free_bytes(metrics) == {"state": 7, "adapters": 3}
    lines = [r.message for r in caplog.records if "disk_adapters" in r.message]
    assert [line.split()[2:4] for line in lines] == [["has", "not"], ["answers", "again"]]
    assert value(metrics, "collector_errors_total", collector="disk_adapters") == 5


def test_why_a_late_collector_failed_is_in_the_log(caplog, monkeypatch):
    metrics, gate = AgentMetrics(), threading.Event()
    errors = [OSError("stale file handle")]

    def measure() -> None:
        assert gate.wait(HANG_S)
        if errors:
            raise errors.pop()

    metrics.add_source("disk", measure, metrics.disk_free_bytes)
    monkeypatch.setattr(metric_set, "SOURCE_LIMIT_S", 0.5)
    metrics.text()
    assert "stale file handle" not in caplog.text
    gate.set()
    metrics._sources["disk"].last.join(HANG_S)
    metrics.text()
    assert "stale file handle" in caplog.text


def test_a_source_may_be_added_while_a_scrape_measures():
    metrics = AgentMetrics()
    metrics.add_source("first", lambda: metrics.add_source("second", lambda: None))
    assert metrics.text()


def test_a_metric_that_cannot_be_written_costs_itself_only(caplog):
    metrics = AgentMetrics()
    metrics.open_slots.set_function(lambda: "many")
    text = metrics.text().decode()
    assert "perennial_open_slots" not in text
    assert "\nperennial_open_episodes 0.0" in text
    assert 'perennial_collector_errors_total{collector="open_slots"} 1.0' in text


def lint(text: bytes) -> None:
    promtool = find_program("promtool", "prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=HANG_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_promtool_finds_nothing_in_what_the_agent_exports(tmp_path):
    with running(tmp_path) as server:
        server.operator().request(Activate(1, server.publish(1)))
        client = server.client()
        started = start_own(client)
        client.request(observe(started.episode_id, 0))
        client.request(finish(started.episode_id))
    lint(server.metrics.text())


# ---- success -------------------------------------------------------------------------------------


def test_wilson_bounds_enclose_the_rate():
    assert wilson(0, 0) == (0.0, 1.0)
    # Brown et al., 2001, formula (4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    for trials in (1, 5, 50):
        ends = [wilson(k, trials) for k in range(trials + 1)]
        assert ends == sorted(ends)
        assert all(low <= k / trials <= high for k, (low, high) in enumerate(ends))
        low, high = wilson(trials, trials)
        assert (1 - high, 1 - low) == pytest.approx(wilson(0, trials))


def test_windows_best_and_forgetting_are_those_of_the_last_episodes():
    rng = random.Random(3)
    metrics = AgentMetrics()
    record = SuccessRecord(metrics)
    wins, rates = [], []
    for episode in range(400):
        success = rng.random() < (0.9 if episode < 200 else 0.2)
        record.on_sealed(sealed(outcome="success" if success else "failure"))
        record.on_sealed(sealed(outcome="aborted"))
        record.on_sealed(sealed("push", "timeout"))
        wins.append(success)
        last = wins[-100:]
        if len(last) >= BEST_MIN_EPISODES:
            rates.append(sum(last) / len(last))
        else:
            assert value(metrics, "task_success_best", task="reach", phase="train") is None
    labels = {"task": "reach", "phase": "train"}
    for window in (20, 100):
        found = value(metrics, "task_success_rate", window=str(window), **labels)
        assert found == pytest.approx(sum(wins[-window:]) / window)
        assert value(metrics, "task_success_episodes", window=str(window), **labels) == window
    assert value(metrics, "task_success_best", **labels) == pytest.approx(max(rates))
    assert value(metrics, "task_forgetting", **labels) == pytest.approx(max(rates) - rates[-1])
    low = value(metrics, "task_success_best_wilson_low", **labels)
    assert value(metrics, "task_success_wilson_high", **labels) < low < max(rates)
    assert value(metrics, "task_success_rate", task="push", phase="train", window="20") == 0
    assert value(metrics, "adapter_staleness_episodes") == 1200


def test_a_swap_splits_the_record_and_only_the_new_version_counts_after_it():
    metrics = AgentMetrics()
    record = SuccessRecord(metrics)
    labels = {"task": "reach", "phase": "serve"}
    for outcome in ("success", "success", "success", "failure"):
        record.on_sealed(sealed(outcome=outcome, phase="serve"))
    assert value(metrics, "task_success_before_swap", **labels) is None
    assert value(metrics, "task_success_since_swap", **labels) == 0.75
    record.on_activated(ActivationRow("v1", 9.0, 4))
    assert value(metrics, "task_success_before_swap", **labels) == 0.75
    assert value(metrics, "task_success_before_swap_wilson_low", **labels) == wilson(3, 4)[0]
    assert value(metrics, "task_success_since_swap", **labels) is None
    assert value(metrics, "task_episodes_since_swap", **labels) == 0
    record.on_sealed(sealed(phase="serve", outcome="success"))  # was under way with the base
    assert value(metrics, "task_episodes_since_swap", **labels) == 0
    record.on_sealed(sealed(phase="serve", outcome="failure", version="v1"))
    assert value(metrics, "task_success_since_swap", **labels) == 0
    assert value(metrics, "task_success_since_swap_wilson_high", **labels) == wilson(0, 1)[1]
    assert value(metrics, "adapter_staleness_episodes") == 2
    assert value(metrics, "adapter_activated_timestamp_seconds") == 9.0
    record.on_activated(ActivationRow("v1", 10.0, 6))  # it is active already
    assert value(metrics, "task_success_since_swap", **labels) == 0


def test_a_policy_that_never_changes_is_seldom_said_to_forget():
    rng, metrics = random.Random(1), AgentMetrics()
    record = SuccessRecord(metrics)
    labels = {"task": "reach", "phase": "serve"}
    alarms = []
    for episode in range(4000):
        outcome = "success" if rng.random() < 0.7 else "failure"
        record.on_sealed(sealed(outcome=outcome, phase="serve"))
        if episode % 20 == 19:
            low = value(metrics, "task_success_best_wilson_low", **labels)
            alarms.append(low > value(metrics, "task_success_wilson_high", **labels))
    assert sum(alarms) <= 0.01 * len(alarms)


def test_a_scrape_never_sees_a_part_of_the_history():
    metrics, texts = AgentMetrics(), []
    scrape = threading.Thread(target=lambda: texts.append(metrics.text().decode()))

    def history():
        yield sealed()
        scrape.start()
        scrape.join(0.3)
        yield sealed()

    SuccessRecord(metrics).restore([], history())
    scrape.join(HANG_S)
    assert 'outcome="success",phase="train",task="reach"} 2.0' in texts[0]


def test_an_altered_episode_is_counted_once_however_often_it_is_met(tmp_path):
    with running(tmp_path) as server:
        client = server.client()
        client.request(finish(start_own(client).episode_id, "aborted", chunks=0))
        (path,) = (tmp_path / "agent" / "episodes").glob("*.mcap")
        path.write_bytes(b"altered")
        for epoch in (1, 2):
            found = server.operator(epoch).request(FetchEpisodes(epoch, 4, 0.0))
            assert found.items == []
        assert server.sample("perennial_episodes_quarantined_total", reason="altered") == 1


def test_distrusted_episodes_stay_counted_but_leave_the_rates():
    metrics = AgentMetrics()
    rows = [sealed(), sealed(outcome="failure", state="quarantined", counted=False)]
    SuccessRecord(metrics).restore([], rows)
    assert value(metrics, "episodes_total", task="reach", outcome="failure", phase="train") == 1
    assert value(metrics, "task_success_rate", task="reach", phase="train", window="20") == 1


def test_a_restarted_server_exports_the_same_success(tmp_path):
    """Real servers on one ledger: training, evaluation, own tasks, and a swap in the middle."""

    def figures(server) -> list[str]:
        names = tuple(PREFIX + name for name in SUCCESS_FAMILIES)
        lines = server.metrics.text().decode().splitlines()
        return [line for line in lines if line.startswith(names)]

    with running(tmp_path) as server:
        operator, client = server.operator(), server.client()
        version = server.publish(1)
        orders = [make_order("train/0", slots=4)]
        orders += [
            make_order(f"eval/0/{mode}", task=task, phase="eval", split="eval", row=0, mode=mode)
            for mode, task in (("rollout", "reach"), ("greedy", "push"))
        ]
        post(operator, *orders)
        outcomes = ["success", "timeout", "aborted", "failure", "success", "success", "failure"]
        for k, outcome in enumerate([*outcomes, "success", "success"]):
            if k == 4:
                operator.request(Activate(1, version))
            _, started = take_slot(client)
            client.request(observe(started.episode_id, 0))
            client.request(finish(started.episode_id, outcome))
        for outcome in ("success", "intervened"):
            started = start_own(client)
            client.request(observe(started.episode_id, 0))
            client.request(finish(started.episode_id, outcome))
        client.request(finish(start_own(client).episode_id, "aborted", chunks=0))
    before = figures(server)
    with running(tmp_path) as server:
        after = figures(server)
        labels = {"row": "0", "mode": "rollout", "task": "reach"}
        assert value(server.metrics, "eval_episodes", **labels) == 2
        assert value(server.metrics, "eval_success_rate", **labels) == 0.5
    assert sorted(before) == sorted(after)
    assert sum("episodes_total{" in line for line in before) >= 6
    assert any("before_swap{" in line for line in before)
    assert any("since_swap{" in line for line in before)
