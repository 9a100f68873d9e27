"""Elastic weight consolidation: weights that matter to earlier tasks are held where they were.

    loss += lambda * sum_i F_i (theta_i - theta*_i)^2

Source: Kirkpatrick et al. 2017, over the adapter's parameters alone; lambda without their 1/2, as
arXiv 2603.11653 weighs it. One anchor theta*, the adapter as the last task left it, and the sum of
all tasks' Fisher information (Huszar 2018): the penalty of older tasks moves on with the adapter.

F is the diagonal of the true Fisher information of the final adapter's policy: at observations of
the task's last iteration actions are drawn anew from it, at the temperature of the rollouts, and
each chunk's own gradient of log pi is squared. The public code squares accumulating gradients of
the total loss of the last update, before that update was taken.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from learner.batch import Samples
from learner.continual.method import ContinualMethod
from learner.continual.past import Past
from learner.continual.settings import EwcConfig
from learner.policy import LoraPolicy
from learner.randomness import keyed_rng

FISHER, ANCHOR = "fisher/", "anchor/"


class Ewc(ContinualMethod):
    """See above. Before the second task there is no penalty."""

    def __init__(self, settings: EwcConfig, policy: LoraPolicy, past: Past, seed: int) -> None:
        self._settings, self._policy, self._past, self._seed = settings, policy, past, seed
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def before_task(self, task_index: int, version: str) -> str:
        """Add the Fisher information of the task before; its adapter is the new anchor."""
        samples = self._past.last_samples(task_index - 1) if task_index > 0 else None
        if samples is not None:
            found = self._estimate(samples, task_index - 1)
            self.fisher = {
                name: value + self.fisher.get(name, 0.0) for name, value in found.items()
            }
            self.anchor = {
                name: tensor.detach().clone() for name, tensor in self._policy.parameters.items()
            }
        return version

    def add_gradient(self, update_id: int, step: int) -> dict[str, float]:
        """The penalty's gradient; reports the penalty."""
        if not self.fisher:
            return {}
        penalty = self._settings.weight * quadratic_penalty(
            self._policy.parameters, self.anchor, self.fisher
        )
        penalty.backward()
        return {"ewc_penalty": penalty.item()}

    def state(self) -> dict[str, Tensor]:
        """Fisher information and anchor."""
        fisher = {f"{FISHER}{name}": tensor for name, tensor in self.fisher.items()}
        return fisher | {f"{ANCHOR}{name}": tensor for name, tensor in self.anchor.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """As `state` returned them."""
        device = self._policy.device
        self.fisher, self.anchor = (
            {
                name.removeprefix(prefix): tensor.to(device)
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            for prefix in (FISHER, ANCHOR)
        )

    def _estimate(self, samples: Samples, task_index: int) -> dict[str, Tensor]:
        rng = keyed_rng(self._seed, "ewc", task_index)
        executed = np.flatnonzero(samples.mask_BK.any(axis=1))  # the others have no gradient
        count = min(self._settings.samples, len(executed))
        rows = np.sort(rng.choice(executed, size=count, replace=False))
        return fisher_information(self._policy, samples, rows, rng)


def quadratic_penalty(
    parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Tensor:
    """sum_i F_i (theta_i - theta*_i)^2, with gradient to `parameters`."""
    terms = [
        (fisher[name] * (parameter - anchor[name]).square()).sum()
        for name, parameter in parameters.items()
    ]
    return torch.stack(terms).sum()


def fisher_information(
    policy: LoraPolicy, samples: Samples, rows: np.ndarray, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Mean over `rows` of (d log pi(a) / d theta)^2, a drawn from the policy, by parameter.

    log pi of a chunk is the sum over its executed tokens. One backward pass a row: the square of a
    sum of gradients is not the sum of their squares.
    """
    parameters = policy.parameters
    fisher = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    for row in rows:
        one = np.array([row])
        scores = policy.score_choices(samples, one, policy.draw(samples, one, rng))
        mask_1K = torch.from_numpy(samples.mask_BK[one]).to(policy.device)
        logprob = (scores.logprobs_BKA * mask_1K[:, :, None]).sum()
        gradients = torch.autograd.grad(logprob, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(fisher.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.square()
    return {name: total / len(rows) for name, total in fisher.items()}
