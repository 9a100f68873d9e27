"""Gymnasium environments as bodies: mapping, seeds, success, and what is refused."""

from __future__ import annotations

import gymnasium
import numpy as np
import point_env
import pytest

from agent.wire.errors import ConfigError
from sim_bridge.config import GymnasiumConfig, SimConfig
from sim_bridge.robot import BridgeError, UnknownTask
from sim_bridge.suites import make_suite

assert point_env.PointEnv, "registers itself"


def make_config(**changed: object) -> GymnasiumConfig:
    values: dict[str, object] = {
        "env_id": "perennial_tests/Point-v0",
        "tasks": {"near": {"goal": 0.6}, "far": {"goal": 2.0}},
        "cameras": {"agentview": "pixels/top"},
        "proprio": ["position", "speed"],
    }
    return GymnasiumConfig(**{**values, **changed})  # type: ignore[arg-type]


def make(**changed: object):
    return make_suite(SimConfig(suite="points", gymnasium=make_config(**changed)))


def test_the_mapping_gives_pictures_proprio_and_each_tasks_own_arguments() -> None:
    suite = make()
    assert (suite.tasks, suite.cameras) == (("near", "far"), ("agentview",))
    assert (suite.action_dim, suite.proprio_dim) == (2, 3)
    steps = {}
    for task in suite.tasks:
        body = suite.make_body(task)
        body.reset("train", 3)
        seen = body.observe()
        assert seen.images["agentview"].shape == (16, 16, 3)
        assert seen.proprio.dtype == np.float32
        assert seen.proprio[2] == 0.5
        over, steps[task] = False, 0
        while not over and not body.success:
            over = body.apply(body.action_high_A)
            steps[task] += 1
        assert body.success
        body.close()
    assert steps["near"] < steps["far"]


def test_an_init_state_is_a_seed_and_splits_share_none() -> None:
    suite = make()
    body = suite.make_body("near")

    def start(split: str, state: int) -> tuple[float, ...]:
        body.reset(split, state)
        return tuple(body.observe().proprio.tolist())

    starts = {(split, state): start(split, state) for split in ("train", "eval", "demo")
              for state in range(5)}  # fmt: skip
    assert len(set(starts.values())) == len(starts)
    assert start("eval", 2) == starts["eval", 2]
    with pytest.raises(BridgeError, match="split"):
        body.reset("test", 0)


def test_an_episode_that_runs_out_is_over_and_no_success() -> None:
    body = make().make_body("near")
    body.reset("train", 0)
    over = [body.apply(np.zeros(2, np.float32)) for _ in range(20)]
    assert over == [False] * 19 + [True]
    assert not body.success


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"env_id": ""}, "env_id"),
        ({"tasks": {}}, "tasks"),
        ({"env_id": "NoSuchEnv-v0"}, "NoSuchEnv"),
        ({"tasks": {"near": {"colour": 1}}}, "colour"),
        ({"cameras": {"agentview": "position"}}, r"uint8 \[H, W, 3\]"),
        ({"env_id": "CartPole-v1", "tasks": {"near": {}}}, "Discrete"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused_by_name(changed: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(**changed)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my-points", "no axis 'points' .what follows a '-' in a suite's name is one"),
        ("tabletop", "comes with Perennial; give the suite of gymnasium.env_id another name"),
    ],
)
def test_a_name_that_means_something_else_is_refused_with_the_reason(
    name: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_suite(SimConfig(suite=name, gymnasium=make_config()))


def test_actions_must_be_one_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    table = gymnasium.spaces.Box(-1.0, 1.0, (2, 3), np.float32)
    init = point_env.PointEnv.__init__

    def with_table(env: point_env.PointEnv, **given: float) -> None:
        init(env, **given)
        env.action_space = table

    monkeypatch.setattr(point_env.PointEnv, "__init__", with_table)
    with pytest.raises(ConfigError, match=r"\(2, 3\).*only Box with one axis"):
        make()


def test_an_observation_that_is_no_dict_is_said_to_be_none() -> None:
    with pytest.raises(BridgeError, match="it is no dict"):
        make(env_id="Pendulum-v1", tasks={"near": {}})


def test_a_missing_key_names_those_there_are() -> None:
    with pytest.raises(BridgeError, match=r"wrist'; it has pixels/top, position, speed"):
        make(cameras={"agentview": "pixels/wrist"})
    with pytest.raises(UnknownTask, match="near, far"):
        make().make_body("middle")
