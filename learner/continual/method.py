"""What a continual-learning method may do in a run. Doing nothing is sequential fine-tuning.

The loop and the updates call these hooks and know no method by name. Everything a method remembers
is in `state`, which is part of every checkpoint, or follows from the run's durable record.
"""

from collections.abc import Mapping

from torch import Tensor


class ContinualMethod:
    """Sequential fine-tuning: nothing is remembered. Methods override what they need."""

    def before_task(self, task_index: int, version: str) -> str:
        """Called before a task's first iteration, again if that one is repeated after a kill.

        The policy is as the task before left it. A method that changes it returns the version that
        the policy then equals, from which the first episodes are collected.

        Args:
            version: what the policy equals now.
        """
        return version

    def add_gradient(self, update_id: int, step: int) -> dict[str, float]:
        """Add the gradient of the method's loss term for one optimiser step.

        The policy's parameters hold the gradient of the new task's loss already, and are clipped
        afterwards. Returns figures to report. Random draws are keyed by (update_id, step).
        """
        return {}

    def after_update(self) -> None:
        """Called when an iteration's optimiser steps are taken, before it is committed."""

    def after_task(self, task_index: int) -> None:
        """Called after a task's last iteration, before it is committed.

        What the policy is when this returns is published, evaluated, and where the next task
        begins.
        """

    def version_for(self, task: str, trained: Mapping[str, str]) -> str:
        """The adapter version with which a task is evaluated.

        Args:
            trained: task -> the last version that was trained on it, in the order of training; not
                empty.
        """
        return list(trained.values())[-1]

    def learning_rate_factor(self, parameter: str) -> float:
        """By how much the learning rate of a parameter, given by name, differs."""
        return 1.0

    def state(self) -> dict[str, Tensor]:
        """What must be remembered over a restart, by name."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; empty if a run begins, or is continued by this method
        from where another one left it.
        """
