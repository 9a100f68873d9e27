"""DWE: an adapter of its own for every task, and routing by task.

Source: the baseline of that name of arXiv 2603.11653, for which there is no public code. Each task
begins with the adapter that the first one began with, whose update is zero, and is evaluated with
its own; a task that was never trained, with the base. So nothing is forgotten and nothing passed
on: a trial's noise is the same in every row (`learner.evaluation`), so over equal trials NBT is
exactly 0, and so is S(j-1, j) - S(0, j), the base against itself.

The server's active version, for robots' own tasks, is that of the task learned last; activate
another one for robots that do another task.
"""

from collections.abc import Mapping

from agent.wire.messages import BASE_VERSION
from learner.continual.method import ContinualMethod
from learner.policy import LoraPolicy


class Dwe(ContinualMethod):
    """See above.

    Args:
        policy: as a run begins, not yet resumed.
    """

    def __init__(self, policy: LoraPolicy) -> None:
        self._policy, self._fresh = policy, policy.adapter_tensors()

    def before_task(self, task_index: int, version: str) -> str:
        """A fresh adapter; it equals the base."""
        self._policy.load_adapter(self._fresh)
        return BASE_VERSION

    def version_for(self, task: str, trained: Mapping[str, str]) -> str:
        """The task's own."""
        return trained.get(task, BASE_VERSION)
