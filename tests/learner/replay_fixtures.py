"""Replay methods over played episodes, and their gradients against finite differences."""

import dataclasses

import numpy as np
import pytest
import torch
from learner_run import make_config
from micro_fixtures import INSTRUCTIONS, play

from learner.batch import Trajectory, build_samples
from learner.continual.replay import Der, Er
from learner.continual.settings import ContinualConfig, DerConfig, ErConfig

SEED, UPDATE, STEP = 0, 7, 2
WEIGHT, BATCH = 0.5, 6


class Row:
    """As much of a stored episode as is asked for."""

    def __init__(self, episode):
        self.episode, self.success = episode, episode.end.outcome == "success"


class PlayedPast:
    """Episodes of task 0, 1, ... in place of a learner's record."""

    def __init__(self, *tasks):
        self.tasks = tasks

    def last_rows(self, task_index):
        return [Row(episode) for episode in self.tasks[task_index]]

    def read_whole(self, rows):
        return [row.episode for row in rows]

    def samples(self, episodes):
        cameras = sorted({name for episode in episodes for name in episode.chunks[0].images})
        return build_samples([Trajectory(i, e, 0.0) for i, e in enumerate(episodes)], cameras)


def played(policy, task, *successes, instruction=INSTRUCTIONS[0]):
    """One episode of a task for each outcome."""
    episodes = []
    for number, success in enumerate(successes, start=ord(task)):
        episode = play(policy, number, success=success, instruction=instruction)
        meta = dataclasses.replace(episode.meta, task=task)
        episodes.append(dataclasses.replace(episode, meta=meta))
    return episodes


def two_tasks(policy):
    return PlayedPast(
        played(policy, "a", True, False, True),
        played(policy, "b", False, True, instruction=INSTRUCTIONS[1]),
    )


def make_er(policy, past, **changes):
    settings = ErConfig(**{"weight": WEIGHT, "batch_size": BATCH, **changes})
    config = make_config(ContinualConfig("er", er=settings))
    config.cameras = list(policy.model.cameras)
    return Er(config, settings, policy, past)


def make_der(policy, past, **changes):
    settings = DerConfig(**{"weight": WEIGHT, "batch_size": BATCH, **changes})
    return Der(make_config(ContinualConfig("der", der=settings)), settings, policy, past)


def learn_two(method):
    """Of three tasks to train, two are learned."""
    method._config.suite.train_tasks[:] = ["a", "b", "h"]
    method.before_task(1, "v1")
    method.before_task(2, "v2")
    return method


def one_by_one(method, loss_of):
    """Sum over the rows drawn, a row at a time, and the executed actions among them."""
    memory = method.memory.rows
    drawn = method.memory.draw(BATCH, SEED, UPDATE, STEP)
    return sum(loss_of(memory, np.array([row])) for row in drawn), memory.mask_BK[drawn].sum()


def gradient(policy, method):
    for parameter in policy.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    figures = method.add_gradient(UPDATE, STEP)
    return {n: p.grad.clone() for n, p in policy.parameters.items()}, figures


def check_against_finite_differences(policy, method, step=1e-4):
    """Moves one weight a little; the reported loss must change as the gradient says.

    The step is small because a regressing policy's log-density has a kink at every choice.
    """
    found, figures = gradient(policy, method)
    name, gradients = max(found.items(), key=lambda pair: pair[1].abs().max())
    place = np.unravel_index(int(gradients.abs().argmax()), gradients.shape)
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            policy.parameters[name][place] += sign * step
        losses.append(method.add_gradient(UPDATE, STEP)[method.loss_name])
        with torch.no_grad():
            policy.parameters[name][place] -= sign * step
    expected = (losses[0] - losses[1]) / (2 * step)
    assert gradients[place].item() == pytest.approx(expected, rel=0.03)
    assert abs(expected) > 1e-5
    return figures
