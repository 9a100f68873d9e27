"""A suite whose bodies are perturbed: the clean suite, wrapped."""

from __future__ import annotations

from contextlib import ExitStack
from typing import ClassVar, Protocol

import numpy as np

from agent.wire.errors import ConfigError
from sim_bridge.libero.tasks import SUITES as LIBERO_SUITES
from sim_bridge.perturb.axis import Axis, Change, changed
from sim_bridge.perturb.names import AXES, Perturbation, draws
from sim_bridge.perturb.vision import Noise
from sim_bridge.robot import Body, Observation, Suite, UnknownTask

# Of every suite: the learner's orders carry the rephrased instruction, images need no scene.
ANYWHERE = ("noise", "instruction")


class Kit(Protocol):
    """The axes that a family of suites has, beyond those of every suite.

    reasons: axis -> why it is none of them, and what there is instead.
    """

    axes: tuple[str, ...]
    reasons: ClassVar[dict[str, str]]

    def prepare(self, suite: Suite, perturbations: tuple[Perturbation, ...]) -> None:
        """Adds to the suite's scene what the axes need; before any body is made."""

    def applies(self, axis: str, task: str) -> bool:
        """Whether `task` has what the axis changes."""

    def make(self, perturbation: Perturbation, body: Body, task: str) -> Axis:
        """The axis for one body of the suite."""


class PerturbedBody:
    """A body in episodes that the axes change; between its calls its model is the clean one."""

    def __init__(self, body: Body, task: str, axes: dict[str, Axis]) -> None:
        """axes: name -> axis, in the order in which they are applied."""
        self.action_low_A, self.action_high_A = body.action_low_A, body.action_high_A
        self.body = body  # the clean one
        self._task = task
        self._axes = axes
        self._episode = ("", 0)
        self._changes: list[Change] = []
        self._steps = 0

    @property
    def success(self) -> bool:
        """Whether the task's predicate holds now."""
        return self.body.success

    def reset(self, split: str, init_state: int) -> None:
        """Sets the clean init state, then what is drawn for it."""
        self._changes, self._steps, self._episode = [], 0, (split, init_state)
        self.body.reset(split, init_state)
        for name, axis in self._axes.items():
            self._changes += axis.start(draws(name, self._task, split, init_state))

    def observe(self) -> Observation:
        """What the policy sees of it."""
        with changed(self._changes), ExitStack() as shown:
            for axis in self._axes.values():
                shown.enter_context(axis.showing())
            seen = self.body.observe()
        images = dict(seen.images)
        for name, axis in self._axes.items():
            axis.see(images, draws(name, self._task, *self._episode, self._steps))
        return Observation(images, seen.proprio)

    def apply(self, action_A: np.ndarray) -> bool:
        """One control step."""
        for axis in self._axes.values():
            axis.before_step(self._steps)
        self._steps += 1
        with changed(self._changes):
            return self.body.apply(action_A)

    def close(self) -> None:
        """Closes the clean body."""
        self.body.close()


class PerturbedSuite:
    """The clean suite under its perturbed name."""

    def __init__(self, suite: Suite, name: str, perturbations: tuple[Perturbation, ...]) -> None:
        """Raises ConfigError when an axis does not apply to the suite, naming those that do."""
        self._kit = _kit_of(suite)
        known = (*self._kit.axes, *ANYWHERE) if self._kit else ANYWHERE
        for each in perturbations:
            if each.axis not in known:
                reason = self._kit.reasons.get(each.axis, "") if self._kit else ""
                have = ", ".join(axis for axis in AXES if axis in known)
                raise ConfigError(
                    f"perturb: '{each.axis}' does not apply to suite '{suite.name}'"
                    f"{reason and f' ({reason})'}; these do: {have}"
                )
        self.name = name
        self.action_dim, self.proprio_dim = suite.action_dim, suite.proprio_dim
        self.cameras = suite.cameras
        self.tasks = tuple(task for task in suite.tasks if self._applies(perturbations, task))
        self._suite, self._perturbations = suite, perturbations
        if self._kit:
            self._kit.prepare(suite, perturbations)

    def make_body(self, task: str) -> PerturbedBody:
        """A perturbed body for `task`. Raises UnknownTask, also where an axis has nothing to do."""
        if task not in self.tasks:
            raise UnknownTask(self.name, task, self.tasks)
        body = self._suite.make_body(task)
        axes = {each.axis: self._make(each, body, task) for each in self._perturbations}
        return PerturbedBody(body, task, axes)

    def close(self) -> None:
        """Closes the clean suite."""
        self._suite.close()

    def _applies(self, perturbations: tuple[Perturbation, ...], task: str) -> bool:
        kit = self._kit
        return all(
            each.axis in ANYWHERE or (kit is not None and kit.applies(each.axis, task))
            for each in perturbations
        )

    def _make(self, perturbation: Perturbation, body: Body, task: str) -> Axis:
        if perturbation.axis == "noise":
            return Noise(perturbation.strength)
        if perturbation.axis == "instruction":
            return Axis(perturbation.strength)
        assert self._kit is not None
        return self._kit.make(perturbation, body, task)


def _kit_of(suite: Suite) -> Kit | None:
    if suite.name == "tabletop":
        return _tabletop()
    return _libero() if suite.name in LIBERO_SUITES else None


def _tabletop() -> Kit:
    from sim_bridge.perturb.tabletop import TabletopKit

    return TabletopKit()


def _libero() -> Kit:
    from sim_bridge.perturb.libero import LiberoKit

    return LiberoKit()
