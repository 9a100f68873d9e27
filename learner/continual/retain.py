"""Weight merge (RETAIN): of what each task changed, a part is kept.

    task k is learned on W_0 + sum_{j<k} c dW_j with a fresh adapter at scale 1;
    evaluated, served at its end, and the next task's beginning is W_0 + sum_{j<=k} c dW_j

Source: the weight-merging baseline of arXiv 2603.11653, whose code merges c dW_j into the base
before a task and evaluates the new adapter at scale c, too. Here no base weight is touched: the
merged updates are a frozen adapter in float32 beside the trained one, which is the same product and
exact on a bfloat16 base. The published adapter is both as one, so its rank grows by r a task.

A learned action scale is no weight update: it goes on as each task leaves it.
"""

from collections.abc import Mapping

from torch import Tensor

from agent.wire.errors import ConfigError
from learner.continual.method import ContinualMethod
from learner.continual.settings import RetainConfig
from learner.policy import LoraPolicy
from learner.randomness import keyed_rng


class Retain(ContinualMethod):
    """See above. One task merged with c = 1 is what sequential fine-tuning publishes."""

    def __init__(self, settings: RetainConfig, policy: LoraPolicy, seed: int) -> None:
        self._settings, self._policy, self._seed = settings, policy, seed

    def before_task(self, task_index: int, version: str) -> str:
        """Everything was done when the task before ended.

        Raises:
            ConfigError: it was learned by another method, which merged nothing.
        """
        if task_index > 0 and not self._policy.past:
            raise ConfigError(
                "continual.method=retain merges a task's update when the task ends, and those of "
                "this run ended under another method; begin a run with continual=retain"
            )
        return version

    def after_task(self, task_index: int) -> None:
        """Merge what the task changed; a fresh adapter, with zero update, is trained next."""
        rng = keyed_rng(self._seed, "retain", task_index)
        self._policy.fold(self._settings.coefficient, rng)

    def state(self) -> dict[str, Tensor]:
        """The merged updates."""
        return self._policy.past

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """As `state` returned them."""
        self._policy.set_past(tensors)
