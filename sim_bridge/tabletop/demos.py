"""Demonstrations for behaviour cloning: frames of noisy expert episodes, labelled with chunks.

The executed actions are the expert's plus noise (DART, Laskey et al. 2017), so frames cover the
states a learned policy drifts into; each label is what the noise-free expert would do from that
very frame for the next K steps, found by branching the simulation.

    python -m sim_bridge.tabletop.demos --out demos --frames 100000 --seed 0 --workers 2

Shards are .npz files (no pickle): agentview and wrist u8[N, H, W, 3], proprio f32[N, 8],
task i16[N], actions f32[N, K, 7], state f32[N, 14] (`object_state`), target f32[N, 6] (subject
and goal relative to the eef, m), episode i32[N]. meta.json describes the set.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

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
EPISODES_PER_SHARD = 100_000  # id space of one shard's episodes


@dataclass(frozen=True)
class DemoConfig:
    """What is generated; equal configs give equal shards on one machine."""

    frames: int
    seed: int = 0
    chunk: int = 5
    shard_frames: int = 10_000
    image_size: int = 64
    operators: str = "expert"


class ActionNoise:
    """DART noise of one episode: Gaussian at a level of its own, bursts, gripper flips."""

    MAX_LEVEL, CLEAN_SHARE = 0.6, 0.2
    BURST_RATE, FLIP_RATE = 0.02, 0.015  # per step

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        clean = rng.random() < self.CLEAN_SHARE
        self.level = 0.0 if clean else rng.uniform(0.0, self.MAX_LEVEL)
        self.disturbed = not clean
        self.burst_steps = self.flip_steps = 0
        self.burst_A = np.zeros(6)

    def apply(self, action_A: np.ndarray) -> np.ndarray:
        """The action to execute, f64[7] in [-1, 1], in place of the expert's `action_A`."""
        rng = self.rng
        executed_A = action_A + self.level * rng.normal(size=7)
        if self.disturbed and self.burst_steps == 0 and rng.random() < self.BURST_RATE:
            self.burst_steps = int(rng.integers(3, 9))
            self.burst_A = rng.uniform(-1.0, 1.0, 6)
        if self.disturbed and self.flip_steps == 0 and rng.random() < self.FLIP_RATE:
            self.flip_steps = int(rng.integers(2, 7))
        if self.burst_steps:
            self.burst_steps -= 1
            executed_A[:6] = self.burst_A
        if self.flip_steps:
            self.flip_steps -= 1
            executed_A[6] = -action_A[6]
        return np.clip(executed_A, -1.0, 1.0)


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
    rng = np.random.Generator(
        np.random.Philox(np.random.SeedSequence(config.seed, spawn_key=(shard,)))
    )
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
    rows = rows[:frames]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


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

    Raises ValueError if `out` holds the demonstrations of another config.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write_meta(config, out)
    counts = [
        min(config.shard_frames, config.frames - first)
        for first in range(0, config.frames, config.shard_frames)
    ]
    missing = [i for i in range(len(counts)) if not _shard_path(out, i).exists()]
    print(f"{len(counts)} shards, {len(counts) - len(missing)} already complete", flush=True)
    started_s, done_frames = time.monotonic(), 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(_write_shard, config, i, counts[i], out): i for i in missing}
        for job in as_completed(jobs):
            job.result()
            done_frames += counts[jobs[job]]
            rate_hz = done_frames / (time.monotonic() - started_s)
            print(f"shard {jobs[job]} written, {rate_hz:.0f} frames/s", flush=True)


def _shard_path(out: Path, shard: int) -> Path:
    return out / f"shard-{shard:05d}.npz"


def _write_shard(config: DemoConfig, shard: int, frames: int, out: Path) -> None:
    scene = Scene(config.image_size)
    arrays = generate_shard(config, shard, frames, scene)
    scene.close()
    path = _shard_path(out, shard)
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_meta(config: DemoConfig, out: Path) -> None:
    meta = {
        "config": asdict(config),
        "tasks": [{"slug": t.slug, "instruction": t.instruction} for t in TASKS],
        "versions": {
            "mujoco": Scene(config.image_size).mujoco.__version__,
            "numpy": np.__version__,
        },
    }
    path = out / "meta.json"
    if path.exists():
        found = json.loads(path.read_text("utf-8"))
        if found != meta:
            raise ValueError(f"{path}: describes other demonstrations; choose another --out")
        return
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(meta, indent=1), "utf-8")
    temporary.replace(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Generate demonstrations of the tabletop suite.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=5, help="actions per label")
    parser.add_argument("--shard-frames", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--operators", choices=OPERATORS, default="expert", help="who demonstrates")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    chosen = parser.parse_args(arguments)
    for name in ("frames", "chunk", "shard_frames", "workers"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1")
    config = DemoConfig(
        chosen.frames, chosen.seed, chosen.chunk, chosen.shard_frames, chosen.image_size,
        chosen.operators,
    )  # fmt: skip
    try:
        generate(config, chosen.out, chosen.workers)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"demos: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
