"""Invariants of the tabletop suite: determinism, init states, expert, labels."""

import json

import numpy as np
import pytest

from sim_bridge.gl import NoRenderBackend, select_backend
from sim_bridge.tabletop.demos import DemoConfig, generate, generate_shard, label_chunk
from sim_bridge.tabletop.env import TabletopEnv
from sim_bridge.tabletop.expert import expert_action
from sim_bridge.tabletop.goals import is_success
from sim_bridge.tabletop.init_states import init_state
from sim_bridge.tabletop.scene import Scene
from sim_bridge.tabletop.tasks import HELD_OUT_TASKS, TASKS, TRAIN_TASKS, task_by_slug


@pytest.fixture(scope="module")
def scene():
    scene = Scene()
    yield scene
    scene.close()


def run_expert(env: TabletopEnv, split: str, index: int, noise: float = 0.0) -> bool:
    rng = np.random.default_rng(index)
    env.reset(split, index)
    while env.steps < env.task.horizon_steps and not env.success:
        env.step(expert_action(env) + noise * rng.normal(size=7))
    return env.success


def test_tasks_have_stable_ids_and_short_distinct_instructions():
    assert [task.id for task in TASKS] == list(range(len(TASKS)))
    assert len({task.slug for task in TASKS}) == len({t.instruction for t in TASKS}) == len(TASKS)
    assert all(t.instruction == t.instruction.lower() for t in TASKS)
    assert max(len(t.instruction.split()) for t in TASKS) <= 9
    assert len({task_by_slug(slug).skill for slug in TRAIN_TASKS}) == 3
    assert not set(TRAIN_TASKS) & set(HELD_OUT_TASKS)
    with pytest.raises(KeyError, match="known tasks"):
        task_by_slug("fly")


def test_same_actions_give_bitwise_the_same_states(scene):
    rng = np.random.default_rng(0)
    actions_TA = rng.uniform(-1, 1, (40, 7))
    runs = []
    for _ in range(2):
        env = TabletopEnv(scene, TASKS[0])
        env.reset("train", 7)
        states = []
        for action_A in actions_TA:
            env.step(action_A)
            states.append(env.data.qpos.copy())
        runs.append(np.array(states))
    assert runs[0].tobytes() == runs[1].tobytes()


def test_reset_forgets_the_episode_before(scene):
    env = TabletopEnv(scene, TASKS[3])
    env.reset("train", 1)
    first = env.snapshot().physics
    run_expert(env, "eval", 2)
    env.reset("train", 1)
    assert env.snapshot().physics.tobytes() == first.tobytes()
    assert env.steps == 0
    assert not env.success


def test_restored_snapshot_continues_bitwise(scene):
    env = TabletopEnv(scene, task_by_slug("pick_red_tray"))
    env.reset("train", 0)
    for _ in range(12):
        env.step(expert_action(env))
    before, state = env.snapshot(), env.object_state()
    futures = []
    for _ in range(2):
        for _ in range(8):
            env.step(expert_action(env))
        futures.append(env.snapshot())
        env.restore(before)
    assert futures[0].physics.tobytes() == futures[1].physics.tobytes()
    assert futures[0].steps == 20
    assert env.steps == 12
    np.testing.assert_array_equal(env.object_state(), state)


def test_train_and_eval_init_states_are_disjoint():
    for task in TASKS:
        places = [
            init_state(task, split, i).cube_xy.tobytes()
            for split in ("train", "eval")
            for i in range(50)
        ]
        assert len(set(places)) == 100
    with pytest.raises(ValueError, match="0 to 49"):
        init_state(TASKS[0], "eval", 50)
    with pytest.raises(ValueError, match="split"):
        init_state(TASKS[0], "test", 0)


def test_init_states_are_no_success_and_settling_moves_nothing(scene):
    for task in TASKS:
        env = TabletopEnv(scene, task)
        for split in ("train", "eval"):
            for i in range(0, 50, 7):
                env.reset(split, i)
                assert not is_success(env)
                drawn_xy = init_state(task, split, i).cube_xy
                settled_xy = env.object_state()[:9].reshape(3, 3)[:, :2]
                np.testing.assert_allclose(settled_xy, drawn_xy, atol=1e-4)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.slug)
def test_expert_solves_the_task_within_its_horizon(scene, task):
    env = TabletopEnv(scene, task)
    assert sum(run_expert(env, "eval", i) for i in range(5)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.slug)
def test_expert_solves_all_init_states_and_withstands_noise(scene, task):
    env = TabletopEnv(scene, task)
    starts = [(split, i) for split in ("train", "eval") for i in range(50)]
    for start in starts:
        env.reset(*start)
        assert not is_success(env)
    assert sum(run_expert(env, *start) for start in starts) >= 97
    assert sum(run_expert(env, *start, noise=0.3) for start in starts) >= 90


def test_holding_still_or_random_actions_do_not_succeed(scene):
    rng = np.random.default_rng(1)
    for task in TASKS:
        env = TabletopEnv(scene, task)
        for random in (False, True):
            env.reset("eval", 0)
            for _ in range(task.horizon_steps):
                env.step(rng.uniform(-1, 1, 7) if random else np.zeros(7))
            assert not env.success, (task.slug, random)


def test_a_cube_counts_only_when_released(scene):
    env = TabletopEnv(scene, task_by_slug("pick_blue_plate"))
    env.reset("train", 0)
    while not env.success:
        before = env.snapshot()
        action_A = expert_action(env)
        env.step(action_A)
    env.restore(before)
    assert env.finger_gap_m < 0.09
    assert action_A[6] < 0
    for _ in range(10):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert not env.success


def test_step_refuses_a_bad_action(scene):
    env = TabletopEnv(scene, TASKS[0])
    env.reset("train", 0)
    before = env.snapshot().physics
    for bad in (np.zeros(6), np.full(7, np.nan), np.zeros((1, 7))):
        with pytest.raises(ValueError, match="7 finite"):
            env.step(bad)
    assert env.snapshot().physics.tobytes() == before.tobytes()


def test_observation_layout_and_visible_change(scene):
    env = TabletopEnv(scene, TASKS[0])
    env.reset("train", 0)
    first = env.observe()
    assert {k: (v.shape, v.dtype.str[1:]) for k, v in first.items()} == {
        "agentview": ((64, 64, 3), "u1"),
        "wrist": ((64, 64, 3), "u1"),
        "proprio": ((8,), "f4"),
    }
    env.step(np.array([1, 0, -1, 0, 0, 0, 1.0]))
    second = env.observe()
    assert all((first[key] != second[key]).any() for key in first)
    # The cabinet stands at the far end: upright images show it in the upper half.
    beige = np.abs(first["agentview"].astype(int) - first["agentview"][10, 10]).sum(-1) < 12
    assert np.nonzero(beige)[0].mean() < 32


def test_labels_equal_the_executed_expert_and_leave_the_state_alone(scene):
    env = TabletopEnv(scene, task_by_slug("stack_red_blue"))
    env.reset("demo", 3)
    for _ in range(6):
        env.step(expert_action(env))
    before = env.snapshot()
    label_KA = label_chunk(env, 5)
    assert env.snapshot().physics.tobytes() == before.physics.tobytes()
    for action_A in label_KA:
        np.testing.assert_array_equal(action_A, expert_action(env))
        env.step(action_A)


def test_label_behind_success_holds_still_and_keeps_the_gripper(scene):
    env = TabletopEnv(scene, task_by_slug("drawer_open"))
    env.reset("train", 0)
    previous = env.snapshot()
    while not env.success:
        previous = env.snapshot()
        env.step(expert_action(env))
    env.restore(previous)
    label_KA = label_chunk(env, 5)
    assert not label_KA[1:, :6].any()
    assert (label_KA[1:, 6] == label_KA[0, 6]).all()


def test_shards_are_seeded_resumed_and_loadable_without_pickle(tmp_path, scene):
    config = DemoConfig(frames=12, seed=5, chunk=3, shard_frames=6)
    generate(config, tmp_path, workers=1)
    names = ["shard-00000.npz", "shard-00001.npz"]
    stamps = [(tmp_path / name).stat().st_mtime_ns for name in names]
    generate(config, tmp_path, workers=1)
    assert [(tmp_path / name).stat().st_mtime_ns for name in names] == stamps
    again = generate_shard(config, 1, 6, scene)
    with np.load(tmp_path / names[1], allow_pickle=False) as stored:
        assert set(stored) == set(again)
        for key, value in again.items():
            np.testing.assert_array_equal(stored[key], value)
        assert stored["actions"].shape == (6, 3, 7)
        assert np.abs(stored["actions"]).max() <= 1.0
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert [task["slug"] for task in meta["tasks"]] == [task.slug for task in TASKS]
    with pytest.raises(ValueError, match="other demonstrations"):
        generate(DemoConfig(frames=12, seed=6, chunk=3, shard_frames=6), tmp_path, workers=1)


def test_missing_backends_name_the_package_to_install(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("sim_bridge.gl._probe", lambda backend: "no library")
    with pytest.raises(NoRenderBackend) as caught:
        select_backend()
    assert "apt-get install -y libosmesa6" in str(caught.value).splitlines()
