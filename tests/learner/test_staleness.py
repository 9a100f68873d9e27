"""Asynchronous runs: which version plays what, that it survives kills, and the limit."""

import dataclasses
import json

import pytest
from learner_run import Crash, Run, make_config

from learner.algorithm_config import AsyncConfig
from learner.checkpoint import Place
from learner.curriculum import stage_at
from learner.groups import place_ahead
from learner.staleness import StaleSamples, collections_ahead, recent_versions
from learner.store import LearnerStore, UpdateRow

ITERATIONS = 3


def settings(staleness, **changes):
    asynchronous = None if staleness is None else AsyncConfig(staleness)
    chosen = {"iterations_per_task": ITERATIONS, "resample_degenerate": 0}
    config = make_config(asynchronous=asynchronous, **{**chosen, **changes})
    config.suite.eval_init_states, config.evaluation.greedy = 1, False  # less to play
    return config


def finish(folder, config, **changes):
    run = Run(folder, config, **changes)
    run.go()
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of staleness 1, uninterrupted."""
    return finish(tmp_path_factory.mktemp("whole"), settings(1))


def expected_version(versions, task_index, iteration, staleness):
    """That of the published ones that plays an iteration; said another way than the code does."""
    published = ["base", *versions]
    first = task_index * ITERATIONS  # updates before the task
    return published[max(first, first + iteration - staleness)]


@pytest.mark.parametrize("staleness", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_iteration_is_played_by_the_version_of_so_many_updates_ago(tmp_path, whole, staleness):
    run = whole if staleness == 1 else finish(tmp_path, settings(2))
    versions, seen = run.adapters.versions(), set()
    for order in run.agent.orders.values():
        if order.phase == "train":
            _, task_index, update_id, *_ = map(str, order.order_id.split("/"))
            iteration = int(update_id) - 1 - int(task_index) * ITERATIONS
            wanted = expected_version(versions, int(task_index), iteration, staleness)
            assert order.version == wanted
            seen.add((task_index, iteration))
    assert len(seen) == 2 * ITERATIONS


def test_nothing_is_left_over(whole):
    counts = whole.store.counts()
    assert counts["pending"] == counts["surplus"] == 0
    assert counts["trained"] + counts["filtered"] == 2 * ITERATIONS * 2 * 3


def test_the_report_says_how_stale_and_how_far_off_the_samples_were(whole):
    text = (whole.folder / "state/progress.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if line["event"] == "iteration" and line["samples"]]
    stale = [line for line in lines if "staleness_mean" in line]
    assert stale
    for line in lines:
        is_first = (line["update"] - 1) % ITERATIONS == 0
        assert ("staleness_mean" in line) != is_first
    for line in stale:
        assert line["staleness_mean"] == 1.0
        assert 0.5 < line["behaviour_ratio_mean"] < 2.0
        assert line["behaviour_ratio_mean"] != 1.0
        assert 0.0 <= line["behaviour_capped"] < 1.0
        assert line["lp_diff_max"] <= 1e-4  # against the version that served
        assert line["first_clip_fraction"] == 0.0  # the clip is around what the learner had


def test_the_next_iteration_is_ordered_before_an_update_is_computed(tmp_path):
    """So acting never waits for learning: the agent has work throughout `learn`."""
    run, ahead = Run(tmp_path, settings(1)), []
    teacher = run.loop.teacher
    learn = teacher.learn

    def looking(optimizer, groups, place):
        updates = {int(o.split("/")[2]) for o in run.agent.orders if o.startswith("train/")}
        ahead.append(max(updates) - (place.update_id + 1))
        return learn(optimizer, groups, place)

    teacher.learn = looking
    run.go()
    assert ahead == [1, 1, 0] * 2  # the last of a task is followed by its evaluation


def test_staleness_0_is_the_synchronous_run_to_the_last_bit(tmp_path):
    found = []
    for name, staleness in (("off", None), ("zero", 0)):
        (tmp_path / name).mkdir()
        config = settings(staleness, iterations_per_task=2, resample_degenerate=2)
        found.append(finish(tmp_path / name, config))
    off, zero = found
    assert zero.adapters.versions() == off.adapters.versions()
    assert zero.agent.orders == off.agent.orders
    assert zero.store.counts() == off.store.counts()


@pytest.mark.parametrize(
    ("update_id", "moment"),
    [
        (2, "before_commit"),
        pytest.param(3, "before_publish", marks=pytest.mark.slow),
        pytest.param(4, "before_activate", marks=pytest.mark.slow),
        pytest.param(5, "before_commit", marks=pytest.mark.slow),
        pytest.param(6, "before_publish", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_it_is_the_same_run(tmp_path, whole, update_id, moment):
    first = Run(tmp_path, settings(1), crash_at=(update_id, moment))
    with pytest.raises(Crash):
        first.go()
    first.restore()
    first.store.close()
    second = finish(tmp_path, settings(1), agent=first.agent)
    assert second.adapters.versions() == whole.adapters.versions()
    assert second.agent.orders == whole.agent.orders
    assert second.store.counts() == whole.store.counts()


@pytest.mark.parametrize(
    ("staleness", "task"), [(1, 0), (0, 0), pytest.param(1, 1, marks=pytest.mark.slow)]
)
def test_an_older_version_than_allowed_is_refused_and_nothing_is_trained(tmp_path, staleness, task):
    """An agent that plays an order with an older version than it was pinned to."""
    run = Run(tmp_path, settings(staleness))
    run_slot, last = run.agent.run_slot, task * ITERATIONS + 3

    def disobeying(order, k):
        if order.order_id.startswith(f"train/{task}/{last}/"):
            published = ["base", *run.adapters.versions()]
            order = dataclasses.replace(order, version=published[task * (ITERATIONS - 1)])
        return run_slot(order, k)

    run.agent.run_slot = disobeying
    with pytest.raises(StaleSamples, match=r"trains on episodes of .* alone"):
        run.go()
    assert len(run.adapters.versions()) == last - 1
    weights = run.policy.adapter_tensors()
    committed = run.serve(run.adapters.versions()[-1]).adapter_tensors()
    assert all(weights[name].equal(committed[name]) for name in weights)


def test_recent_versions_go_back_to_the_beginning_of_the_task_and_no_further(tmp_path):
    store = LearnerStore(tmp_path / "learner.db")
    for number in range(1, 5):
        parent = f"v{number - 1}" if number > 1 else "base"
        store.commit_update(UpdateRow(number, 0, number, "", "", f"v{number}", parent, {}), {})
    assert recent_versions(store, Place(4, 0, 4), "v4", 2) == ["v4", "v3", "v2"]
    assert recent_versions(store, Place(4, 0, 4), "v4", 9) == ["v4", "v3", "v2", "v1", "base"]
    assert recent_versions(store, Place(4, 0, 4), "v4", 0) == ["v4"]
    # A task that began after update 3, from a version of its own.
    assert recent_versions(store, Place(3, 1, 0), "other", 2) == ["other"]
    assert recent_versions(store, Place(4, 1, 1), "v4", 2) == ["v4", "v3"]


@pytest.mark.parametrize("grouping", ["init_state", "task"])
def test_what_is_ordered_ahead_is_what_will_be_ordered(grouping):
    """The same orders, whether they are planned in advance or when it is their turn."""
    config = settings(2, grouping=grouping, max_episodes_per_task=3 * 6)
    place, stage = Place(5, 1, 1, 2, 6), stage_at(config, 1)
    assert stage.task_index == 1
    planned = collections_ahead(config, place, ["v5", "v4"])
    assert len(planned) == 2  # the third iteration would be beyond the episodes
    later = place_ahead(config, place, 1)
    (in_its_turn,) = collections_ahead(config, later, ["v6", "v5", "v4"])
    assert planned[1].first_plans() == in_its_turn.first_plans()
    assert planned[0].first_plans() != in_its_turn.first_plans()
    assert planned[0].first_plans()[0].orders[0].version == "v4"
    assert in_its_turn.first_plans()[0].orders[0].version == "v4"
