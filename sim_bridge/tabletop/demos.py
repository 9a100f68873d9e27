"""Demonstrations for behaviour cloning: frames of noisy expert episodes, labelled with chunks.

The executed actions are the expert's plus noise (DART, Laskey et al. 2017), so frames cover the
states a learned policy drifts into; each label is what the noise-free expert would do from that
very frame for the next K steps, found by branching the simulation.

    perennial demos collect --suite tabletop --out demos --workers 2

Shards are .npz files (no pickle): agentview and wrist u8[N, H, W, 3], proprio f32[N, 8],
task i16[N], actions f32[N, K, 7], state f32[N, 14] (`object_state`), target f32[N, 6] (subject
and goal relative to the eef, m), episode i32[N]. meta.json describes the set.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from agent.wire.errors import ConfigError
from sim_bridge.demos.noise import ActionNoise
from sim_bridge.demos.shards import EPISODES_PER_SHARD, shard_rng, stack_rows, write_shards
from sim_bridge.tabletop.env import TARGET_HIGH, TARGET_LOW, TabletopEnv
from sim_bridge.tabletop.expert import RIGHT, expert_action
from sim_bridge.tabletop.goals import goal_position, is_success, subject_position
from sim_bridge.tabletop.operators import OPERATORS, draw_misjudgement
from sim_bridge.tabletop.scene import CUBES, Scene
from sim_bridge.tabletop.tasks import GOALS, TASKS, TaskSpec

NEAR_M = 0.06  # eef to subject or goal: most of an episode is spent here
KEEP_NEAR, KEEP_FAR = 0.35, 1.0
RELABEL_SHARE = 0.5  # of the kept frames of tasks on cubes
CUBE_TASKS = tuple(task for task in TASKS if GOALS[task.slug].subject in CUBES)


@dataclass(frozen=True)
class DemoConfig:
    """What is generated; equal configs give equal shards on one machine."""

    frames: int = 100_000
    seed: int = 0
    chunk: int = 5
    shard_frames: int = 10_000
    image_size: int = 64
    operators: str = "expert"


def label_chunk(env: TabletopEnv, chunk: int, misjudged_m: np.ndarray = RIGHT) -> np.ndarray:
    """The next `chunk` actions of an expert so misjudging the goal from here, f32[K, 7].

    Branches the simulation and restores it. Behind a success the chunk is padded with holding
    still at the gripper command last given.
    """
    before = env.snapshot()
    actions_KA = np.zeros((chunk, 7), np.float32)
    for k in range(chunk):
        if env.success and k > 0:
            actions_KA[k, 6] = actions_KA[k - 1, 6]
            continue
        actions_KA[k] = expert_action(env, misjudged_m)
        env.step(actions_KA[k])
    env.restore(before)
    return actions_KA


def target_offsets(env: TabletopEnv) -> np.ndarray:
    """Subject and goal of the task relative to the eef, f32[6], m, world axes."""
    eef = env.eef_position()
    return np.concatenate([subject_position(env) - eef, goal_position(env) - eef]).astype(
        np.float32
    )


def record_frame(
    env: TabletopEnv, chunk: int, episode: int, misjudged_m: np.ndarray = RIGHT
) -> dict[str, np.ndarray]:
    """One labelled frame of the present state; keys as in a shard, without the N axis."""
    seen = {**env.observe(), "state": env.object_state(), "episode": np.array(episode, np.int32)}
    return {**seen, **_label(env, chunk, misjudged_m)}


def relabel_frame(
    env: TabletopEnv,
    row: dict[str, np.ndarray],
    task: TaskSpec,
    chunk: int,
    misjudged_m: np.ndarray = RIGHT,
) -> dict[str, np.ndarray] | None:
    """The frame `row` of the present state labelled for `task`; None if that is fulfilled."""
    own, env.task = env.task, task
    fulfilled = is_success(env)
    relabelled = None if fulfilled else {**row, **_label(env, chunk, misjudged_m)}
    env.task = own
    return relabelled


def _label(env: TabletopEnv, chunk: int, misjudged_m: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "task": np.array(env.task.id, np.int16),
        "actions": label_chunk(env, chunk, misjudged_m),
        "target": target_offsets(env),
    }


def generate_shard(config: DemoConfig, shard: int, frames: int, scene: Scene) -> dict:
    """Generate shard number `shard`: arrays of `frames` frames, tasks evenly represented."""
    rng = shard_rng(config.seed, shard)
    envs = [TabletopEnv(scene, task) for task in TASKS]
    kept_of_task = np.zeros(len(TASKS), int)
    rows: list[dict[str, np.ndarray]] = []
    episode = shard * EPISODES_PER_SHARD
    while len(rows) < frames:
        env = envs[int(kept_of_task.argmin())]
        env.reset("demo", int(rng.integers(2**31 - 1)))
        kept = _record_episode(env, rng, config, episode)
        np.add.at(kept_of_task, [int(row["task"]) for row in kept], 1)
        rows += kept
        episode += 1
    return stack_rows(rows, frames)


def _record_episode(
    env: TabletopEnv, rng: np.random.Generator, config: DemoConfig, episode: int
) -> list[dict[str, np.ndarray]]:
    noise = ActionNoise(rng)
    misjudged_m = draw_misjudgement(config.operators, env.task, rng)
    rows = []
    while not env.success and env.steps < 2 * env.task.horizon_steps and _within_reach(env):
        near = np.abs(target_offsets(env)).reshape(2, 3).max(1).min() < NEAR_M
        if rng.random() < (KEEP_NEAR if near else KEEP_FAR):
            row = record_frame(env, config.chunk, episode, misjudged_m)
            rows.append(row)
            if env.task in CUBE_TASKS and rng.random() < RELABEL_SHARE:
                other = CUBE_TASKS[rng.integers(len(CUBE_TASKS))]
                others_m = draw_misjudgement(config.operators, other, rng)
                rows += filter(None, [relabel_frame(env, row, other, config.chunk, others_m)])
        env.step(noise.apply(expert_action(env, misjudged_m)))
    return rows


def _within_reach(env: TabletopEnv) -> bool:
    """Whether the subject can still be reached: knocked out of the workspace it ends an episode."""
    xy = subject_position(env)[:2]
    return bool((xy > TARGET_LOW[:2]).all() and (xy < TARGET_HIGH[:2]).all())


def generate(config: DemoConfig, out: Path, workers: int) -> None:
    """Write all shards of `config` to `out`; complete ones there are kept.

    Raises ConfigError for unknown operators or if nothing can render, ValueError if `out` holds
    the demonstrations of another config.
    """
    if config.operators not in OPERATORS:
        known = ", ".join(OPERATORS)
        raise ConfigError(f"operators: expected one of {known}, got '{config.operators}'")
    meta = {
        "config": asdict(config),
        "tasks": [{"slug": t.slug, "instruction": t.instruction} for t in TASKS],
        "versions": {
            "mujoco": Scene(config.image_size).mujoco.__version__,
            "numpy": np.__version__,
        },
    }
    record = partial(_record_shard, config)
    write_shards(out, meta, config.frames, config.shard_frames, record, workers)


def _record_shard(config: DemoConfig, shard: int, frames: int) -> dict[str, np.ndarray]:
    scene = Scene(config.image_size)
    arrays = generate_shard(config, shard, frames, scene)
    scene.close()
    return arrays
