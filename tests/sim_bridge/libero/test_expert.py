"""The scripted expert for LIBERO: it succeeds, it recovers, and it is a function of the state."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from agent.wire.errors import ConfigError
from sim_bridge.gl import select_backend
from sim_bridge.libero.env import LiberoEnv
from sim_bridge.libero.expert import expert_action, subject_and_goal
from sim_bridge.libero.protocol import OPEN_HAND, protocol_by_name
from sim_bridge.libero.tasks import suite_tasks

PLACES = {
    ("libero_spatial", 4): ("akita_black_bowl_1", "plate_1"),
    ("libero_object", 1): ("cream_cheese_1", "basket_1_contain_region"),
}
HORIZON_STEPS = 200
LIFT_M, DROP_STEPS = 0.04, 8


@pytest.fixture(scope="module", params=PLACES, ids=str)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[LiberoEnv, tuple[str, str]]]:
    select_backend()
    suite, index = request.param
    env = LiberoEnv(suite_tasks(suite)[index])
    yield env, PLACES[request.param]
    env.close()


def start(env: LiberoEnv, state: int) -> None:
    protocol_by_name("openvla").start(env, "eval", state)


def play(env: LiberoEnv, steps: int) -> bool:
    return any(env.step(expert_action(env)) for _ in range(steps))


@pytest.mark.slow
@pytest.mark.parametrize("state", [0, 1])
def test_the_expert_moves_the_subject_to_its_goal(
    place: tuple[LiberoEnv, tuple[str, str]], state: int
) -> None:
    env, names = place
    start(env, state)
    subject, goal = subject_and_goal(env)
    assert (subject.name, goal.name) == names
    away_m = np.linalg.norm(subject.position - goal.position)
    assert play(env, HORIZON_STEPS)
    subject, goal = subject_and_goal(env)
    assert np.linalg.norm(subject.position - goal.position) < min(0.1, away_m)


@pytest.mark.slow
def test_the_expert_picks_up_what_it_dropped(place: tuple[LiberoEnv, tuple[str, str]]) -> None:
    env, _ = place
    start(env, 3)  # of episodes 0 to 6, it fails in two: a drawer is a bad place to drop into
    height_m = subject_and_goal(env)[0].position[2]
    steps = 0
    while subject_and_goal(env)[0].position[2] < height_m + LIFT_M and steps < HORIZON_STEPS:
        env.step(expert_action(env))
        steps += 1
    for _ in range(DROP_STEPS):
        env.step(OPEN_HAND)
    assert subject_and_goal(env)[0].position[2] < height_m + LIFT_M
    assert not env.success
    assert play(env, HORIZON_STEPS)


@pytest.mark.slow
def test_the_action_is_a_function_of_the_state(place: tuple[LiberoEnv, tuple[str, str]]) -> None:
    env, _ = place
    seen = []
    for _ in range(2):
        start(env, 3)
        actions = []
        for _ in range(60):
            before = env.robosuite.sim.get_state().flatten()
            action_A = expert_action(env)
            np.testing.assert_array_equal(expert_action(env), action_A)
            np.testing.assert_array_equal(env.robosuite.sim.get_state().flatten(), before)
            assert action_A.dtype == np.float32
            assert (np.abs(action_A) <= 1.0).all()
            actions.append(action_A)
            env.step(action_A)
        seen.append(np.stack(actions))
    np.testing.assert_array_equal(*seen)


def test_a_task_of_another_kind_is_refused() -> None:
    goal = [["open", "wooden_cabinet_1_middle_region"]]
    env = SimpleNamespace(
        task=SimpleNamespace(slug="open_the_middle_drawer"),
        robosuite=SimpleNamespace(parsed_problem={"goal_state": goal}),
    )
    with pytest.raises(ConfigError, match="open_the_middle_drawer"):
        subject_and_goal(env)
