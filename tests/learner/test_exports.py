"""What the learner exports: figures that follow the store, its state, and its health."""

import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from functools import partial

import pytest
from learner_run import Crash, Run, make_config
from patience import HANG_S
from programs import find_program

from agent.http import Health, HttpServer
from agent.metrics import LearnerMetrics
from agent.wire.errors import ConfigError
from learner import process
from learner.config import LearnerConfig
from learner.health import Vitals
from learner.metrics import Exports
from learner.store import DISPOSITIONS, LearnerStore, UpdateRow


def value(exports, name, **labels):
    return exports.metrics.registry.get_sample_value(f"perennial_{name}", labels)


def told(exports):
    """Episodes by disposition, and updates."""
    by = {d: value(exports, "learner_episodes_total", disposition=d) for d in DISPOSITIONS}
    return by, value(exports, "grpo_updates_total")


def shown_state(exports):
    exports.metrics.text()
    states = next(iter(exports.metrics.learner_state.collect())).samples
    return next(s.labels["perennial_learner_state"] for s in states if s.value)


def test_counters_are_those_of_the_store_also_after_a_crash(tmp_path):
    first = Run(tmp_path, make_config(), crash_at=(2, "before_activate"))
    with pytest.raises(Crash):
        first.go()
    assert first.store.totals()[1] == 2
    first.restore()
    first.store.close()
    second = Run(tmp_path, make_config(), agent=first.agent)
    assert told(second.exports) == second.store.totals()
    assert told(second.exports)[1] == 2
    second.go()
    assert told(second.exports) == second.store.totals()
    assert value(second.exports, "learner_task_index") == 1


def test_what_rates_are_measured_under_is_exported():
    config = make_config()
    config.suite.stop_at_success = False
    exports = Exports(LearnerMetrics())
    exports.tell_conditions(config)
    for mode, temperature in (("rollout", "1.6"), ("greedy", "0")):
        labels = {"suite": "toy", "suite_protocol": "disjoint", "solved": "at_end"}
        assert value(exports, "run_info", mode=mode, temperature=temperature, **labels) == 1


def test_figures_of_the_last_update_appear_with_it(tmp_path):
    run = Run(tmp_path, make_config())
    assert value(run.exports, "grpo_kl") is None
    run.go()
    lines = (tmp_path / "state" / "progress.jsonl").read_text().splitlines()
    iterations = [line for line in map(json.loads, lines) if line["event"] == "iteration"]
    last = iterations[-1]
    assert value(run.exports, "grpo_kl") == last["approx_kl"]
    assert value(run.exports, "grpo_logprob_difference_max") == last["lp_diff_max"]
    assert value(run.exports, "grpo_groups_total") == sum(i["groups"] for i in iterations)
    assert value(run.exports, "grpo_update_seconds_count", part="learn") == len(iterations)


def test_progress_has_the_time_of_the_last_thing_that_happened():
    now_s = [5.0]
    exports = Exports(LearnerMetrics(), lambda: now_s[0])
    name = "learner_last_progress_timestamp_seconds"
    assert value(exports, name) == 5.0  # the start
    for at_s, happen in (
        (6.0, lambda: exports.accept_episode(None)),
        (7.0, lambda: exports.commit(["trained"])),
        (8.0, exports.note_progress),
    ):
        now_s[0] = at_s
        happen()
        assert value(exports, name) == at_s


def test_the_state_says_when_the_agent_is_missing_and_needed():
    exports, has_agent = Exports(LearnerMetrics()), [True]
    exports.watch_agent(lambda: has_agent[0])
    assert shown_state(exports) == "waiting_for_agent"
    exports.enter("collecting")
    assert shown_state(exports) == "collecting"
    has_agent[0] = False
    assert shown_state(exports) == "waiting_for_agent"
    exports.enter("learning")
    assert shown_state(exports) == "learning"


def test_a_part_that_hangs_is_missing_on_the_page_and_the_rest_is_there(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: gate.wait(10 * HANG_S))
    exports = Exports(LearnerMetrics())
    exports.measure_disk(tmp_path)
    exports.watch_agent(lambda: gate.wait(10 * HANG_S))  # a lock that is never given back
    http = HttpServer("127.0.0.1", 0, exports.metrics.text, lambda: Health(True, True))
    http.start()
    try:
        for number in (1, 2):
            with urllib.request.urlopen(f"{http.url}/metrics", timeout=HANG_S) as response:
                text = response.read().decode()
            for collector in ("disk_state", "learner_state"):
                counted = f'collector_errors_total{{collector="{collector}"}} {number}.0'
                assert counted in text
            assert "\nperennial_disk_free_bytes{" not in text
            assert "\nperennial_learner_state{" not in text
            assert "\nperennial_learner_last_progress_timestamp_seconds " in text
            with urllib.request.urlopen(f"{http.url}/healthz", timeout=HANG_S) as response:
                assert response.status == 200
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("collect disk_state") == names.count("collect learner_state") == 1
    finally:
        gate.set()
        http.close()


class Part:
    """A session, or a receiver."""

    is_open = True
    lives = True

    def is_alive(self):
        return self.lives


def test_promtool_finds_nothing_in_what_the_learner_exports(tmp_path):
    exports = Exports(LearnerMetrics())
    exports.measure_disk(tmp_path)
    exports.commit(["trained", "filtered"])
    figures = {"approx_kl": 0.1, "value_loss": 0.2, "grad_norm": float("nan")}
    exports.observe_iteration(8, 2, [0.5], figures, {"wait": 1.0, "learn": 2.0})
    promtool = find_program("promtool", "prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=exports.metrics.text(), capture_output=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_health_follows_the_model_the_epoch_and_both_threads():
    vitals = []
    learning = threading.Thread(target=lambda: vitals.append(Vitals()))
    learning.start()
    learning.join(HANG_S)
    assert not vitals[0].health().alive
    here, session, receiver = Vitals(), Part(), Part()
    assert here.health().alive
    assert not here.health().ready
    session.is_open = False
    here.loaded(session, receiver)
    assert (here.health().alive, here.health().ready) == (True, False)
    session.is_open = True
    assert (here.health().alive, here.health().ready) == (True, True)
    receiver.lives = False
    assert not here.health().alive


def learner_store(folder):
    """A store with one update."""
    store = LearnerStore(folder / "learner.db")
    store.commit_update(UpdateRow(1, 0, 0, "c", "0" * 64, "v1", "base", {}), {})
    return store


def test_the_learner_serves_metrics_and_health_while_it_loads(tmp_path):
    store = learner_store(tmp_path)
    with process._exporting(make_config(), tmp_path, store):
        url = json.loads((tmp_path / "endpoints.json").read_text())["http"]
        with urllib.request.urlopen(f"{url}/healthz", timeout=HANG_S) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(f"{url}/readyz", timeout=HANG_S)
        assert "loading the model" in caught.value.read().decode()
        with urllib.request.urlopen(f"{url}/metrics", timeout=HANG_S) as answer:
            text = answer.read().decode()
    assert 'perennial_disk_free_bytes{folder="state"}' in text
    assert "\nperennial_ready 0.0" in text
    assert "success" not in text
    assert "\nperennial_grpo_updates_total 1.0" in text  # a 0 here would look like a restart at 0


def test_a_public_address_needs_to_be_wanted(tmp_path):
    config: LearnerConfig = make_config()
    config.http_host = "0.0.0.0"
    exporting = partial(process._exporting, config, tmp_path, learner_store(tmp_path))
    with pytest.raises(ConfigError, match="http_open=true"), exporting():
        pass
    config.http_open = True
    with exporting():
        assert (tmp_path / "endpoints.json").exists()
