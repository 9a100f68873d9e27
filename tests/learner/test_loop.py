import json

import pytest
from fake_agent import HOLD_S
from learner_run import Crash, Run, make_config

from learner.process import results
from learner.stopping import Stopped


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("uninterrupted"), make_config())
    run.matrices = run.go()
    return run


def test_a_whole_run_learns_publishes_and_measures_what_the_figures_need(uninterrupted):
    run, matrices = uninterrupted, uninterrupted.matrices
    versions = run.adapters.versions()
    assert [v[:6] for v in versions] == ["v00001", "v00002"]
    assert len({v[7:] for v in versions}) == 2
    assert run.agent.active == versions
    trials = matrices["rollout"].trials
    assert trials.tolist() == [[2, 2, 2], [2, 0, 0], [2, 2, 2]]
    assert matrices["greedy"].trials.tolist() == [[2, 2, 0], [0, 0, 0], [2, 2, 0]]
    figures = results(run.config, matrices, run.store)
    assert figures["metrics"]["nbt_final"] is not None
    under = {"protocol": "disjoint", "success": "once"}
    assert figures["matrix"].items() >= (under | {"temperature": 1.6}).items()
    assert figures["greedy"].items() >= (under | {"temperature": 0.0}).items()
    counts = run.store.counts()
    assert counts["eval"] == matrices["rollout"].trials.sum() + matrices["greedy"].trials.sum()
    assert counts["pending"] == counts["quarantined"] == 0
    assert counts["trained"] > 0
    assert counts["trained"] + counts["filtered"] >= 2 * 2 * 3
    strips = sorted(path.name for path in (run.folder / "state/filmstrips").iterdir())
    assert strips == [f"{row}_{task}.png" for row in (0, 2) for task in "abh"]


def test_progress_has_a_line_for_every_event(uninterrupted):
    text = (uninterrupted.folder / "state/progress.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    iterations = [line for line in lines if line["event"] == "iteration"]
    assert [line["update"] for line in iterations] == [1, 2]
    rates = [line for line in lines if "successes" in line]
    assert all((line["protocol"], line["success"]) == ("disjoint", "once") for line in rates)
    assert all(line["trials"] > 0 for line in rates)
    assert {(line["event"], line.get("mode"), line["temperature"]) for line in rates} == {
        ("iteration", None, 1.6), ("eval", "rollout", 1.6), ("eval", "greedy", 0.0)
    }  # fmt: skip
    assert all(line["first_clip_fraction"] == 0.0 for line in iterations)
    assert all(line["lp_diff_max"] <= 1e-4 for line in iterations)
    assert all(line["hold_s"] == HOLD_S for line in iterations)
    assert sum(line["event"] == "task_done" for line in lines) == 2


@pytest.mark.parametrize(
    ("update_id", "moment"),
    [
        pytest.param(1, "before_commit", marks=pytest.mark.slow),
        (2, "before_commit"),
        pytest.param(1, "before_publish", marks=pytest.mark.slow),
        (2, "before_activate"),
    ],
)
def test_a_crash_anywhere_in_a_publication_changes_no_adapter(
    tmp_path, uninterrupted, moment, update_id
):
    first = Run(tmp_path, make_config(), crash_at=(update_id, moment))
    with pytest.raises(Crash):
        first.go()
    first.restore()
    first.store.close()
    second = Run(tmp_path, make_config(), agent=first.agent)
    second.go()
    assert second.adapters.versions() == uninterrupted.adapters.versions()
    assert second.store.counts() == uninterrupted.store.counts()
    assert second.agent.active == second.adapters.versions()


def test_stopping_while_waiting_resumes_without_a_trace(tmp_path, uninterrupted):
    config = make_config()
    run = Run(tmp_path, config)
    run.agent.fetch = lambda limit, wait_s: run.stop.set() or []
    with pytest.raises(Stopped):
        run.go()
    del run.agent.fetch
    run.store.close()
    second = Run(tmp_path, config, agent=run.agent)
    second.go()
    assert second.adapters.versions() == uninterrupted.adapters.versions()


def test_learning_rate_zero_publishes_the_same_weights(tmp_path):
    run = Run(tmp_path, make_config(learning_rate=0.0))
    run.go()
    assert len({version[7:] for version in run.adapters.versions()}) == 1


@pytest.mark.parametrize(
    "choice", [{"grouping": "task"}, {"advantage_control": "permute_within_group"}]
)
def test_other_groupings_and_the_control_run(tmp_path, choice):
    run = Run(tmp_path, make_config(**choice))
    run.go()
    assert run.store.counts()["trained"] > 0


def test_an_episode_budget_ends_a_task_early(tmp_path):
    run = Run(tmp_path, make_config(max_episodes_per_task=1, iterations_per_task=9))
    run.go()
    assert len(run.adapters.versions()) == 2


def test_no_iterations_means_measuring_the_base_only(tmp_path):
    run = Run(tmp_path, make_config(iterations_per_task=0))
    matrices = run.go()
    assert run.adapters.versions() == []
    assert matrices["rollout"].trials[1:].sum() == 0
    assert results(run.config, matrices, run.store)["metrics"]["final_avg"] is None


def test_used_episodes_may_be_dropped_and_nothing_else_changes(tmp_path, uninterrupted):
    config = make_config()
    config.keep_used_episodes = False
    first = Run(tmp_path, config, crash_at=(2, "before_commit"))
    with pytest.raises(Crash):
        first.go()
    first.restore()
    first.store.close()
    second = Run(tmp_path, config, agent=first.agent)
    second.go()
    assert second.adapters.versions() == uninterrupted.adapters.versions()
    assert second.store.counts() == uninterrupted.store.counts()
    left = {path.name for path in (tmp_path / "state/episodes").glob("*.mcap")}
    assert len(left) == second.store.counts()["eval"]
    assert not left & set(second.store.used_files())
