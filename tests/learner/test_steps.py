"""How long one step of a learner may take, and that long work tells of every step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from learner_run import make_config
from micro_fixtures import micro_policy, play

from agent.model.cost import published_config
from learner.batch import Trajectory, build_samples
from learner.continual.ewc import fisher_information
from learner.steps import longest_step_s, micro_batch_flops


def test_the_longest_step_follows_from_model_and_settings(tmp_path: Path) -> None:
    config, policy = make_config(), micro_policy(tmp_path)
    own_s = longest_step_s(config, policy)
    waits_s = 2 * config.request_timeout_s
    assert waits_s < own_s < waits_s + 10, "a micro model is soon done"
    patient = replace(config, request_timeout_s=config.request_timeout_s + 30)
    assert longest_step_s(patient, policy) == own_s + 60
    larger = replace(config, micro_batch=3 * config.micro_batch)
    assert micro_batch_flops(larger, policy) == 3 * micro_batch_flops(config, policy)
    policy.network.config = published_config(variant="oft-discrete", num_images=2)
    assert longest_step_s(config, policy) > 600, "7B on one thread"
    policy.device = type("Cuda", (), {"type": "cuda"})()
    assert own_s < longest_step_s(replace(config, micro_batch=4), policy) < 300


def test_every_pass_through_the_network_tells_that_it_comes(tmp_path: Path) -> None:
    """Estimating the Fisher information of a task is one long step without it."""
    policy = micro_policy(tmp_path)
    episodes = [play(policy, index, chunks=2) for index in range(2)]
    samples = build_samples(
        [Trajectory(i, each, 0.0) for i, each in enumerate(episodes)], ["agentview", "wrist"]
    )
    told: list[int] = []
    policy.on_forward = lambda: told.append(1)
    fisher_information(policy, samples, np.arange(len(samples)), np.random.default_rng(0))
    assert len(told) >= len(samples) == 4
