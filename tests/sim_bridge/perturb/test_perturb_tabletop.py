"""Each axis on the tabletop changes what it says, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sim_bridge.config import SimConfig
from sim_bridge.perturb.names import AXES
from sim_bridge.perturb.suite import PerturbedBody
from sim_bridge.robot import Suite
from sim_bridge.suites import make_suite
from sim_bridge.tabletop.body import TabletopBody
from sim_bridge.tabletop.env import TabletopEnv
from sim_bridge.tabletop.expert import expert_action
from sim_bridge.tabletop.goals import GOALS
from sim_bridge.tabletop.init_states import CUBE_HIGH_XY, CUBE_LOW_XY

TASK = "pick_red_tray"
STATE_MOVED = ("start_pose", "position", "distractor")
MOVABLE = ("object", "receptacle", "position", "reposition")


@pytest.fixture(scope="module")
def suites() -> Iterator[dict[str, Suite]]:
    names = {axis: f"tabletop-{axis}" for axis in AXES} | {"": "tabletop"}
    made = {axis: make_suite(SimConfig(suite=name, image_size=32)) for axis, name in names.items()}
    yield made
    for suite in made.values():
        suite.close()


def env_of(body: PerturbedBody | TabletopBody) -> TabletopEnv:
    inner = body.body if isinstance(body, PerturbedBody) else body
    assert isinstance(inner, TabletopBody)
    return inner.env


def play(body, steps: int, state: int = 3) -> list[bytes]:
    """What there is to see and the physical state, after every step of the expert's."""
    env = env_of(body)
    body.reset("eval", state)
    shown = []
    for _ in range(steps):
        body.apply(expert_action(env))
        seen = body.observe()
        shown += [seen.images[name].tobytes() for name in ("agentview", "wrist")]
        shown += [seen.proprio.tobytes(), env.snapshot().physics.tobytes()]
    return shown


def all_fields(model) -> dict[str, bytes]:
    names = [name for name in dir(model) if not name.startswith("_")]
    fields = {name: getattr(model, name) for name in names}
    return {
        name: value.tobytes() for name, value in fields.items() if isinstance(value, np.ndarray)
    }


@pytest.mark.parametrize("axis", AXES)
def test_an_episode_repeats_and_leaves_no_trace(axis: str, suites: dict[str, Suite]) -> None:
    """The model is shared by bodies that take turns, so it is clean between any two calls."""
    body = suites[axis].make_body(TASK)
    assert isinstance(body, PerturbedBody)
    model = env_of(body).scene.model
    fields = all_fields(model)
    before = play(body.body, 3)
    perturbed = play(body, 3)
    assert all_fields(model) == fields
    assert play(body.body, 3) == before
    assert play(body, 3) == perturbed
    if axis not in ("texture", "distractor"):  # whose scenes have more in them
        assert before == play(suites[""].make_body(TASK), 3)


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_changes_what_it_says_and_nothing_else(axis: str, suites: dict[str, Suite]) -> None:
    body = suites[axis].make_body(TASK)
    assert isinstance(body, PerturbedBody)
    body.body.reset("eval", 3)
    env = env_of(body)
    clean, clean_physics = body.body.observe(), env.snapshot().physics
    body.reset("eval", 3)
    seen, physics = body.observe(), env.snapshot().physics
    assert np.array_equal(physics, clean_physics) == (axis not in STATE_MOVED)
    assert np.array_equal(seen.proprio, clean.proprio) == (axis != "start_pose")
    changed = {name for name in clean.images if (clean.images[name] != seen.images[name]).any()}
    if axis in ("instruction", "reposition"):
        assert changed == set()
    else:
        assert "agentview" in changed
    if axis == "camera":
        assert changed == {"agentview"}
    body.reset("eval", 4)
    other = body.observe().images["agentview"]
    assert not np.array_equal(seen.images["agentview"], other)


def test_the_object_starts_where_no_init_state_has_it(suites: dict[str, Suite]) -> None:
    body = suites["position"].make_body(TASK)
    env = env_of(body)
    for state in range(10):
        body.reset("eval", state)
        xy = env.position("red")[:2]
        assert (xy < CUBE_LOW_XY).any() or (xy > CUBE_HIGH_XY).any()
        assert not body.success


def test_the_object_is_shifted_once_in_the_episode(suites: dict[str, Suite]) -> None:
    body = suites["reposition"].make_body(TASK)
    env = env_of(body)
    body.reset("eval", 0)
    places = [env.position("red")[:2]]
    still_A = np.array([0.0] * 6 + [-1.0], np.float32)
    for _ in range(20):
        body.apply(still_A)
        places.append(env.position("red")[:2])
    ways_m = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert (ways_m > 0.02).sum() == 1
    assert np.delete(ways_m, ways_m.argmax()).max() < 1e-3


def test_only_tasks_with_a_thing_to_move_have_the_axes_that_change_it(
    suites: dict[str, Suite],
) -> None:
    for axis in AXES:
        left_out = set(suites[""].tasks) - set(suites[axis].tasks)
        expected = {"drawer_open", "drawer_close", "button_press"} if axis in MOVABLE else set()
        assert left_out == expected, axis


def test_strength_scales_the_same_draw() -> None:
    poses = []
    for name in ("tabletop-start_pose_50", "tabletop-start_pose", "tabletop"):
        body = make_suite(SimConfig(suite=name)).make_body(TASK)
        body.reset("eval", 5)
        poses.append(env_of(body).eef_position()[:2])
    half, whole, clean = poses
    np.testing.assert_allclose(2 * (half - clean), whole - clean, atol=1e-3)
    assert np.linalg.norm(whole - clean) > 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("camera-lighting-texture-noise-instruction", 1.0),  # the expert looks at no picture
        ("object", 0.8),
        ("receptacle-start_pose-distractor", 0.9),
        ("position", 0.9),
        ("reposition", 0.9),
    ],
)
def test_the_expert_still_solves_most(name: str, share: float) -> None:
    suite = make_suite(SimConfig(suite=f"tabletop-{name}", image_size=32))
    solved = []
    for task in suite.tasks:
        body = suite.make_body(task)
        env = env_of(body)
        for state in range(3):
            body.reset("eval", state)
            while env.steps < env.task.horizon_steps and not body.success:
                body.apply(expert_action(env))
            solved.append(body.success)
    assert np.mean(solved) >= share
    assert {GOALS[task].subject for task in suite.tasks} >= {"red", "puck"}
    suite.close()
