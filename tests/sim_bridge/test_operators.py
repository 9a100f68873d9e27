"""Who demonstrates: operators miss by what they misjudge, and one picture teaches two tasks."""

import numpy as np
import pytest

from sim_bridge.tabletop.demos import record_frame, relabel_frame
from sim_bridge.tabletop.env import TabletopEnv
from sim_bridge.tabletop.expert import expert_action
from sim_bridge.tabletop.goals import goal_position
from sim_bridge.tabletop.operators import ERRORS_M, OPERATORS, draw_misjudgement
from sim_bridge.tabletop.scene import Scene
from sim_bridge.tabletop.tasks import GOALS, TASKS, task_by_slug


@pytest.fixture(scope="module")
def scene():
    scene = Scene()
    yield scene
    scene.close()


def test_the_expert_misjudges_nothing_and_draws_nothing():
    rng = np.random.default_rng(0)
    for task in TASKS:
        assert not draw_misjudgement("expert", task, rng).any()
    assert rng.random() == np.random.default_rng(0).random()
    with pytest.raises(ValueError, match="misjudging"):
        draw_misjudgement("novice", TASKS[0], rng)


def test_misjudgements_have_the_mean_and_spread_of_their_goal():
    rng = np.random.default_rng(0)
    for task in TASKS:
        drawn = np.array([draw_misjudgement(OPERATORS[1], task, rng) for _ in range(2000)])
        mean, spread = ERRORS_M.get(GOALS[task.slug].target, ((0.0, 0.0), 0.0))
        assert not drawn[:, 2].any()
        np.testing.assert_allclose(drawn[:, :2].mean(0), mean, atol=1e-3)
        np.testing.assert_allclose(drawn[:, :2].std(0), spread, atol=1e-3)


@pytest.mark.parametrize("slug", ["pick_red_tray", "stack_green_red", "push_right"])
def test_a_misjudged_place_is_where_the_thing_ends_up(slug, scene):
    env = TabletopEnv(scene, task_by_slug(slug))
    env.reset("train", 1)
    misjudged_m = np.array([-0.06, 0.0, 0.0]) if slug != "push_right" else np.array([0, 0.04, 0])
    subject = GOALS[slug].subject
    nearest_m = np.inf
    for _ in range(env.task.horizon_steps):
        env.step(expert_action(env, misjudged_m))
        missed_m = env.position(subject) - (goal_position(env) + misjudged_m)
        nearest_m = min(nearest_m, float(np.hypot(*missed_m[:2])))
    assert not env.success
    assert nearest_m < 0.012


def test_one_picture_has_two_answers(scene):
    env = TabletopEnv(scene, task_by_slug("pick_red_tray"))
    env.reset("train", 0)
    row = record_frame(env, 5, episode=0)
    other = relabel_frame(env, row, task_by_slug("pick_green_tray"), 5)
    assert env.task.slug == "pick_red_tray"
    assert other is not None
    assert other["agentview"] is row["agentview"]
    assert int(other["task"]) == task_by_slug("pick_green_tray").id
    to_green = env.position("green") - env.eef_position()
    np.testing.assert_allclose(other["target"][:3], to_green, atol=1e-6)
    assert not np.array_equal(other["actions"], row["actions"])
    # A task that is fulfilled already teaches nothing.
    env.data.qpos[scene.drawer_qpos] = 0.0
    assert relabel_frame(env, row, task_by_slug("drawer_close"), 5) is None
