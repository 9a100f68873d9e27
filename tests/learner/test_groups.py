from collections import Counter

import numpy as np
import pytest

from agent.wire.errors import ConfigError
from learner.algorithm_config import AlgorithmConfig
from learner.checkpoint import Place
from learner.config import LearnerConfig, SuiteConfig, TaskConfig
from learner.evaluation import GREEDY, ROLLOUT, count_cell, plan_row
from learner.groups import Collection, init_state_at
from learner.store import EpisodeRow


def make_config(**algorithm):
    tasks = [TaskConfig(slug, f"do {slug}", 40) for slug in ("a", "b", "c", "h")]
    return LearnerConfig(
        suite=SuiteConfig("toy", tasks, ["a", "b", "c"], ["h"], eval_init_states=5),
        algorithm=AlgorithmConfig(**{"group_size": 4, "groups_per_iteration": 3, **algorithm}),
    )


def rows_for(plans, success):
    return {
        slot: EpisodeRow(f"id {slot}", slot.split("#")[0], slot, "a", "train", "v", outcome, 5,
                         True, "f", None)
        for plan in plans for slot in plan.slot_ids
        for outcome in ["success" if success(slot) else "timeout"]
    }  # fmt: skip


def alternate(slot):
    return int(slot[-1]) % 2 == 0


def test_groups_are_one_order_of_one_init_state_with_unique_ids():
    plans = Collection(
        make_config(), Place(update_id=4, task_index=1, groups_used=7), "v"
    ).first_plans()
    orders = [order for plan in plans for order in plan.orders]
    assert [order.order_id for order in orders] == [f"train/1/5/0/{i}" for i in range(3)]
    assert all(order.slots == 4 and order.noise_key == order.order_id for order in orders)
    assert all(order.task == "b" and order.version == "v" for order in orders)
    assert [order.init_state for order in orders] == [
        init_state_at(0, 1, 7 + i, 50) for i in range(3)
    ]


def test_init_states_are_all_used_before_one_repeats():
    states = [init_state_at(3, 0, cursor, 20) for cursor in range(60)]
    assert all(count == 3 for count in Counter(states).values())
    assert set(states[:20]) == set(range(20))
    assert states[:20] != states[20:40]
    assert states != [init_state_at(4, 0, cursor, 20) for cursor in range(60)]


def test_degenerate_groups_are_drawn_again_within_the_allowance():
    collection = Collection(make_config(resample_degenerate=3), Place(), "v")
    plans = collection.first_plans()
    plans = collection.complete(
        plans, rows_for(plans, lambda slot: "/0#" in slot or alternate(slot))
    )
    assert [p.orders[0].order_id for p in plans] == ["train/0/1/1/3"]
    plans = collection.complete(plans, rows_for(plans, lambda slot: False))
    assert [p.orders[0].order_id for p in plans] == ["train/0/1/2/4"]
    plans = collection.complete(plans, rows_for(plans, alternate))
    assert plans == []
    assert [g.degenerate for g in collection.groups] == [True, False, False, True, False]
    states = [init_state_at(0, 0, i, 50) for i in range(5)]
    assert len(set(states)) == 5


def test_the_allowance_of_extra_groups_is_not_exceeded():
    collection = Collection(make_config(resample_degenerate=4), Place(), "v")
    plans, ordered = collection.first_plans(), 0
    while plans:
        ordered += len(plans)
        plans = collection.complete(plans, rows_for(plans, lambda slot: True))
    assert ordered == 3 + 4


def test_permuting_outcomes_keeps_their_number_and_is_reproducible():
    def advantages(control):
        collection = Collection(make_config(advantage_control=control), Place(), "v")
        plans = collection.first_plans()
        collection.complete(plans, rows_for(plans, lambda slot: slot.endswith("#0")))
        return np.array([group.advantages_G for group in collection.groups])

    plain, permuted = advantages("none"), advantages("permute_within_group")
    np.testing.assert_allclose(np.sort(plain), np.sort(permuted))
    assert (plain != permuted).any()
    np.testing.assert_array_equal(permuted, advantages("permute_within_group"))


def test_grouping_by_task_makes_one_group_over_many_init_states():
    collection = Collection(make_config(grouping="task", resample_degenerate=5), Place(), "v")
    plans = collection.first_plans()
    assert len(plans) == 1
    assert len({order.init_state for order in plans[0].orders}) == 12
    assert collection.complete(plans, rows_for(plans, lambda slot: True)) == []
    assert collection.groups[0].degenerate


@pytest.mark.parametrize("grouping", ["init_state", "task"])
@pytest.mark.parametrize("arrival", ["reversed", "shuffled", "lexicographic"])
def test_groups_are_consumed_in_slot_order_whatever_the_order_of_arrival(grouping, arrival):
    """With more than ten slots, or orders, the order of their names is another one."""
    algorithm = {"group_size": 12, "groups_per_iteration": 12, "grouping": grouping}
    collection = Collection(make_config(**algorithm), Place(), "v")
    plans = collection.first_plans()
    rows = list(rows_for(plans, lambda slot: slot.endswith(("#3", "/3#0"))).items())
    if arrival == "shuffled":
        np.random.default_rng(0).shuffle(rows)
    arrived = {"reversed": rows[::-1], "lexicographic": sorted(rows)}.get(arrival, rows)
    collection.complete(plans, dict(arrived))
    for plan, group in zip(plans, collection.groups, strict=True):
        numbers = [(o.order_id.rsplit("/", 1)[1], k) for o in plan.orders for k in range(o.slots)]
        wanted = [f"train/0/1/0/{order}#{k}" for order, k in numbers]
        assert [int(order) for order, _ in numbers] == sorted(int(order) for order, _ in numbers)
        assert [episode.slot_id for episode in group.episodes] == wanted
        # An advantage belongs to its episode.
        assert [a > 0 for a in group.advantages_G] == [e.success for e in group.episodes]


def test_rows_measure_what_the_figures_need_on_the_same_trials():
    config = make_config()
    first, middle, last = (plan_row(config, row, lambda task: "v") for row in (0, 2, 3))
    assert [(c.mode, c.task) for c in middle] == [(ROLLOUT, "b")]
    assert [(c.mode, c.task) for c in first] == [(c.mode, c.task) for c in last]
    assert {c.task for c in first if c.mode == GREEDY} == {"a", "b", "c"}
    for before, after in zip(first, last, strict=True):
        for x, y in zip(before.orders, after.orders, strict=True):
            assert (x.noise_key, x.init_state, x.run_seed, x.split) == (
                y.noise_key, y.init_state, y.run_seed, "eval")  # fmt: skip
            assert x.order_id != y.order_id
    cells = {(c.mode, c.task): c for c in first}
    assert sum(o.slots for o in cells[ROLLOUT, "a"].orders) == 10
    assert sum(o.slots for o in cells[ROLLOUT, "h"].orders) == 5
    assert all(o.temperature == 0 for o in cells[GREEDY, "a"].orders)


def test_counting_a_cell():
    cell = plan_row(make_config(), 1, lambda task: "v")[0]
    slots = [f"{o.order_id}#{k}" for o in cell.orders for k in range(o.slots)]
    rows = {slot: EpisodeRow("i", "o", slot, "a", "eval", "v", "success" if i < 3 else "failure",
                             1, True, "f", "eval") for i, slot in enumerate(slots)}  # fmt: skip
    assert count_cell(cell, rows) == (3, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 1}, "group_size"),
        ({"grouping": "scene"}, "init_state, task"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"method": "reinforce"}, "grpo, ppo, dpo, sft"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**change)


def test_unknown_and_doubly_used_tasks_are_refused():
    tasks = [TaskConfig("a", "do a", 10)]
    with pytest.raises(ConfigError, match="not tasks of"):
        LearnerConfig(suite=SuiteConfig("toy", tasks, ["b"], []))
    with pytest.raises(ConfigError, match="both trained and held out"):
        LearnerConfig(suite=SuiteConfig("toy", tasks, ["a"], ["a"]))
    with pytest.raises(ConfigError, match=r"suite\.tasks is empty"):
        LearnerConfig()
