"""CRL-VLA's critic: two heads on one trunk, one that learns and one that remembers.

    V(s, g) = MLP([h0; goal]) or Q(s, a, g) = MLP([h0; goal; actions])

The Monte-Carlo head learns the present task's returns and gives PPO its baseline. The
goal-conditioned head is a copy of it from the end of the task before and is never trained: what it
says of earlier tasks can only change because the trunk under it moves, which
`learner.continual.crl_vla` measures and holds down.

Source: CRL-VLA, which joins the trunk's state with a language embedding and has both heads on the
policy's trunk. Which embedding is ours: the mean of the network's own input embeddings of the
instruction's tokens, scaled to unit root mean square, which is about the size of h0. No adapter
reaches those embeddings, so the goal is constant. h0 has read the instruction, too.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agent.model.actions import decode_tokens
from agent.model.policy_model import PolicyModel
from agent.process.instruction import clean_instruction
from learner.batch import Chunks, Samples
from learner.critic import Critic, ValueHead
from learner.policy import LoraPolicy, Scores
from learner.randomness import keyed_rng


class DualCritic(Critic):
    """See above. Both heads are among its tensors, the Monte-Carlo head alone is trained.

    Q reads the chunk as it was chosen, in normalised units. It does not see which of its actions
    were executed: a chunk cut short by success would tell the outcome. GAE needs values of states:
    Q's mean over `draws` chunks drawn from the policy at the observation, not over the one that was
    taken, so that the baseline does not depend on what it is subtracted from.

    Args:
        hidden_sizes: of either head.
        seed: of the heads' weights and of the draws.
        reads_actions: Q instead of V.
        draws: for Q only.
    """

    monte_carlo = True

    def __init__(
        self,
        policy: LoraPolicy,
        hidden_sizes: Sequence[int],
        seed: int,
        reads_actions: bool,
        draws: int,
    ) -> None:
        super().__init__()
        config = policy.network.config
        actions = config.chunk_size * config.action_dim if reads_actions else 0
        goal_size = policy.network.word_embedding.embedding_dim
        self._size = int(config.text_config["hidden_size"]) + goal_size + actions
        self._policy, self._hidden_sizes, self._seed = policy, hidden_sizes, seed
        self._reads_actions, self._draws = reads_actions, draws
        self._goals: dict[str, Tensor] = {}
        self.monte_carlo_head = self._fresh_head(0)
        self.goal_head = self._fresh_head(0).requires_grad_(False)

    def begin_task(self, task_index: int) -> None:
        """What was learned is frozen, and a fresh head, keyed by seed and task, learns next."""
        self.goal_head.load_state_dict(self.monte_carlo_head.state_dict())
        self.monte_carlo_head.load_state_dict(self._fresh_head(task_index).state_dict())

    def predict(self, scores: Scores, samples: Chunks, rows: np.ndarray) -> Tensor:
        """The Monte-Carlo head's word."""
        inputs = self._inputs(scores, samples, rows, samples.choices_BKA[rows])
        values_B: Tensor = self.monte_carlo_head(inputs)
        return values_B

    def remember(self, scores: Scores, samples: Chunks, rows: np.ndarray) -> Tensor:
        """The frozen head's word, f32[B], with gradient to the trunk alone."""
        inputs = self._inputs(scores, samples, rows, samples.choices_BKA[rows])
        values_B: Tensor = self.goal_head(inputs)
        return values_B

    def baseline(
        self, predicted_B: Tensor, scores: Scores, samples: Samples, rows: np.ndarray
    ) -> Tensor:
        """V as it is, or Q's mean over drawn chunks.

        Draws are keyed by the batch's first chunk: by its version and its trajectory's place, for
        the id of an episode is another one in every run.
        """
        if not self._reads_actions:
            return predicted_B
        first = rows[0]
        stream = f"critic_draws/{samples.version_B[first]}/{samples.trajectory_B[first]}"
        rng = keyed_rng(self._seed, stream, int(samples.step_index_B[first]))
        total_B = torch.zeros_like(predicted_B)
        for _ in range(self._draws):
            choices_BKA = self._policy.redraw(scores, samples, rows, rng)
            total_B += self.monte_carlo_head(self._inputs(scores, samples, rows, choices_BKA))
        return total_B / self._draws

    def _inputs(
        self, scores: Scores, samples: Chunks, rows: np.ndarray, choices_BKA: np.ndarray
    ) -> Tensor:
        goals_BD = torch.stack([self._goal(text) for text in samples.instruction_B[rows].tolist()])
        parts = [scores.state_BH.float(), goals_BD]
        if self._reads_actions:
            bins = self._policy.network.config.n_action_bins
            parts.append(flat_actions(choices_BKA, bins).to(goals_BD.device))
        return torch.cat(parts, dim=1)

    def _goal(self, instruction: str) -> Tensor:
        if instruction not in self._goals:
            self._goals[instruction] = embed_goal(self._policy.model, instruction)
        return self._goals[instruction]

    def _fresh_head(self, task_index: int) -> ValueHead:
        return ValueHead(self._size, self._hidden_sizes, self._seed, task_index)


@torch.no_grad()
def embed_goal(model: PolicyModel, instruction: str) -> Tensor:
    """An instruction as one vector, f32, as wide as a word: see the top of this file."""
    text = clean_instruction(instruction).lower()
    ids = model.prompts.tokenizer.encode(text, add_special_tokens=False).ids
    words = model.network.word_embedding(torch.tensor(ids, device=model.device))
    mean = words.float().mean(0)
    return F.rms_norm(mean, mean.shape)


def flat_actions(choices_BKA: np.ndarray, n_bins: int) -> Tensor:
    """Choices as normalised actions of a whole chunk, f32 (B, K * A); tokens by their bins."""
    is_token = np.issubdtype(choices_BKA.dtype, np.integer)
    actions_BKA = decode_tokens(choices_BKA, n_bins) if is_token else choices_BKA
    return torch.from_numpy(actions_BKA.reshape(len(choices_BKA), -1).astype(np.float32))
