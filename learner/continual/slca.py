"""SLCA, without class alignment: the trunk learns slowly, the head fast.

Source: Zhang et al. 2023 (slow learner with classifier alignment), as a baseline of arXiv
2603.11653: vision and language adapters at 4e-6, the head's at 4e-5. Here the head learns at
`algorithm.learning_rate` and all else at `trunk_factor` of it.

The other half of SLCA, class alignment, fits class means and covariances and trains a classifier
over all classes on draws from them. A head of action tokens trained by reinforcement has one set of
classes for all tasks and no labels, so there is nothing to align. The public code of the baseline
never sets the switch that its learning rates depend on.

The adapted head is `lm_head`, of the convolutional policy its decoder's last layer. Action heads
that regress carry no adapter: such a policy as a whole learns more slowly.
"""

from learner.continual.method import ContinualMethod
from learner.continual.settings import SlcaConfig

HEADS = (".lm_head.", ".decoder.head.")


class Slca(ContinualMethod):
    """See above. Factor 1 is sequential fine-tuning."""

    def __init__(self, settings: SlcaConfig) -> None:
        self._settings = settings

    def learning_rate_factor(self, parameter: str) -> float:
        """1 for the head's parameters, else `trunk_factor`."""
        is_head = any(head in parameter for head in HEADS)
        return 1.0 if is_head else self._settings.trunk_factor
