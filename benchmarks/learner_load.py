"""What a learner does all day, for benchmarks of what else runs on the machine.

python -m benchmarks.learner_load EPISODES   prints one line a GRPO update, until it is stopped

EPISODES: a folder with episodes of the nano policy, recorded greedily. Of their chunks an iteration
is made as large as one of the demo; each update is a whole one, from the base model.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from agent.episode import read_episode
from agent.model.policy_model import load_policy_model
from learner.batch import Samples, Trajectory, build_samples
from learner.loss import Clip
from learner.policy import LoraPolicy
from learner.served import ServedLimits
from learner.update import Updater, UpdateSettings, build_optimizer

CHUNKS = 640  # of an iteration of the demo
LORA_RANK, LORA_ALPHA, LEARNING_RATE = 8, 8.0, 3e-3
CAMERAS = ("agentview", "wrist")


def main() -> None:
    """Updates for ever."""
    torch.set_num_threads(1)
    policy = LoraPolicy(load_policy_model("", {}, CAMERAS, ""), LORA_RANK, LORA_ALPHA, seed=0)
    trajectories = _read_trajectories(Path(sys.argv[1]))
    samples = _make_samples(trajectories)
    fresh = policy.adapter_tensors()
    settings = UpdateSettings(
        optimizer_steps=4,
        micro_batch=32,
        clip=Clip(0.2, 0.28),
        clip_norm=1.0,
        served=ServedLimits(tolerance=1e-4, trusted=0.1, refused=1.0, weight_cap=2.0),
        seed=0,
    )
    print(json.dumps({"chunks": len(samples)}), flush=True)
    while True:
        started_s = time.monotonic()
        policy.load_adapter(fresh)  # what was recorded is the base's
        optimizer = build_optimizer(policy.parameters, LEARNING_RATE, 0.0)
        Updater(policy, optimizer, settings).run(samples, len(trajectories), update_id=0)
        print(json.dumps({"update_s": time.monotonic() - started_s}), flush=True)


def _read_trajectories(folder: Path) -> list[Trajectory]:
    """Each recorded episode as often as needed, every other one a success."""
    episodes = [read_episode(path) for path in sorted(folder.rglob("*.mcap"))]
    episodes = [episode for episode in episodes if episode.end.executed_TK.any()]
    if not episodes:
        raise SystemExit(f"no episode in which something was executed in {folder}")
    trajectories: list[Trajectory] = []
    chunks = 0
    while chunks < CHUNKS:
        episode = episodes[len(trajectories) % len(episodes)]
        advantage = 1.0 if len(trajectories) % 2 else -1.0
        trajectories.append(Trajectory(len(trajectories), episode, advantage))
        chunks += len(episode.chunks)
    return trajectories


def _make_samples(trajectories: list[Trajectory]) -> Samples:
    samples = build_samples(trajectories, CAMERAS)
    assert samples is not None, "something was executed"
    # Greedy answers come with the log-probabilities of temperature 1.
    return replace(samples, temperatures_B=np.ones(len(samples), np.float32))


if __name__ == "__main__":
    main()
