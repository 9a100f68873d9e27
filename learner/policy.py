"""The policy as the learner sees it: a frozen OpenVLA with one trainable LoRA adapter.

Beside it there may be a frozen one, the updates of earlier tasks ("past"). What is published is
both as one adapter.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.model import action_scale
from agent.model.distributions import ActionDistribution, action_distribution
from agent.model.full_rank import train_whole_weights, whole_rank
from agent.model.libraries import get_peft_model_state_dict
from agent.model.lora import (
    AdapterError,
    attach_lora,
    load_lora_weights,
    save_adapter,
    scale_update,
    set_frozen_update,
    stack_updates,
)
from agent.model.network import ActionOutput
from agent.model.policy_model import PolicyModel
from agent.model.processing import pad_prompts
from agent.model.recompute import recompute_blocks
from learner.batch import Chunks
from learner.pictures import picture_pixels

LOG_SCALE = "action_log_scale"


@dataclass(frozen=True)
class Scores:
    """Log-probability of the recorded choices and the policy's entropy, both [nats], and h0."""

    logprobs_BKA: Tensor  # with gradient
    entropy_BKA: Tensor  # without
    state_BH: Tensor  # with gradient: the state that predicts the first token, for a critic
    output: ActionOutput  # with gradient: what the distribution was made of
    distribution: ActionDistribution  # with gradient: at the temperature of the rollouts


class LoraPolicy:
    """One adapter over one base model, on the base's device; the adapter is in float32.

    Args:
        model: the base; its network is frozen and wrapped in place.
        seed: of the adapter's initialisation; torch's global RNG is left as it was.
        learn_scale: train the spread of a regressing policy's actions too, instead of keeping
            the config's.
        recompute: keep the inputs of the transformer blocks alone and compute the rest again in
            the backward pass.
        full_rank: train the adapted weights whole, see `agent.model.full_rank`.

    Raises:
        AdapterError: `rank` is not the one that `full_rank` needs.
    """

    def __init__(
        self,
        model: PolicyModel,
        rank: int,
        alpha: float,
        seed: int,
        learn_scale: bool = False,
        recompute: bool = False,
        full_rank: bool = False,
    ) -> None:
        self.model, self.network, self.device = model, model.network, model.device
        self._dtype = next(model.network.parameters()).dtype
        self._is_bfloat16 = self._dtype == torch.bfloat16
        self._past: dict[str, Tensor] = {}
        self.on_forward: Callable[[], object] = lambda: None  # before each pass through the network
        if full_rank and rank != (needed := whole_rank(model.network)):
            raise AdapterError(
                f"algorithm.full_rank of this model needs algorithm.lora_rank={needed} and "
                f"lora_alpha={needed}, got {rank} and {alpha:g}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._peft = attach_lora(model.network, rank, alpha)
        if full_rank:
            train_whole_weights(self._peft)
        if recompute:
            recompute_blocks(model.network)
        self._log_scale_A: Tensor | None = None
        if model.config.is_regression:
            log_scale_A = action_scale.initial_scale(model.config).to(self.device).log()
            self._log_scale_A = nn.Parameter(log_scale_A, requires_grad=learn_scale)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable tensors by name, in module order."""
        tensors: dict[str, Tensor] = {
            name: tensor for name, tensor in self._peft.named_parameters() if tensor.requires_grad
        }
        if self._log_scale_A is not None and self._log_scale_A.requires_grad:
            tensors[LOG_SCALE] = self._log_scale_A
        return tensors

    def forward(
        self,
        images_BNHWC: np.ndarray,
        proprio_BP: np.ndarray,
        instructions_B: Sequence[str],
        choices_BKA: np.ndarray,
    ) -> ActionOutput:
        """The network's output, with gradient.

        Args:
            images_BNHWC: u8, cameras in the policy's order; (B, N) objects where sizes differ.
            proprio_BP: f32 in robot units; ignored by a policy without proprio.
            instructions_B: what the policy was told, to the letter.
            choices_BKA: what is to be scored; only the causal variant looks at it.
        """
        self.on_forward()
        config = self.network.config
        ids, mask = pad_prompts(
            [self.model.prompts.encode_as_told(text) for text in instructions_B],
            config.pad_token_id,
        )
        if mask is not None and config.is_autoregressive:
            raise ValueError("the causal variant scores prompts of one length at a time")
        proprio = self.model.proprio_input(proprio_BP)
        tokens = torch.from_numpy(choices_BKA).to(self.device) if config.is_autoregressive else None
        # Products in bfloat16 as the server makes them; the adapter itself stays float32.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bfloat16):
            output: ActionOutput = self.network(
                ids.to(self.device),
                picture_pixels(self.model.images, images_BNHWC).to(self.device, self._dtype),
                None if proprio is None else proprio.to(self._dtype),
                None if mask is None else mask.to(self.device),
                tokens,
            )
        return output

    def score(self, samples: Chunks, rows: np.ndarray) -> Scores:
        """Score the recorded choices of the given samples, all of one temperature."""
        return self.score_choices(samples, rows, samples.choices_BKA[rows])

    def score_choices(self, samples: Chunks, rows: np.ndarray, choices_BKA: np.ndarray) -> Scores:
        """Score these choices at the observations of the given samples, all of one temperature."""
        temperature = _one_temperature(samples, rows)
        output = self._see(samples, rows, choices_BKA)
        distribution = action_distribution(output, temperature, self._scale())
        logprobs_BKA = distribution.logprobs(torch.from_numpy(choices_BKA).to(self.device))
        entropy_BKA = distribution.entropy().detach()
        state_BH = output.hidden_BKAH[:, 0, 0]
        return Scores(logprobs_BKA, entropy_BKA, state_BH, output, distribution)

    @torch.no_grad()
    def draw(self, samples: Chunks, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Choices (B, K, A) drawn anew at the samples' observations, at their temperature."""
        temperature, config = _one_temperature(samples, rows), self.network.config
        choices_BKA = np.array(samples.choices_BKA[rows])
        # A causal policy sees its own earlier tokens: each dimension follows those drawn before.
        for dimension in range(config.action_dim) if config.is_autoregressive else [slice(None)]:
            output = self._see(samples, rows, choices_BKA)
            drawn = self._sample(action_distribution(output, temperature, self._scale()), rng)
            choices_BKA[:, :, dimension] = drawn[:, :, dimension]
        return choices_BKA

    @torch.no_grad()
    def redraw(
        self, scores: Scores, samples: Chunks, rows: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """`draw` where `scores` are there already: only a causal policy has to look again."""
        if self.network.config.is_autoregressive:
            return self.draw(samples, rows, rng)
        return self._sample(scores.distribution, rng)

    def _sample(self, distribution: ActionDistribution, rng: np.random.Generator) -> np.ndarray:
        draw_noise = rng.laplace if self.network.config.is_regression else rng.gumbel
        noise = torch.from_numpy(draw_noise(size=distribution.noise_shape)).float()
        drawn: np.ndarray = distribution.sample(noise.to(self.device)).cpu().numpy()
        return drawn

    def _see(self, samples: Chunks, rows: np.ndarray, choices_BKA: np.ndarray) -> ActionOutput:
        return self.forward(
            samples.images_BNHWC[rows],
            samples.proprio_BP[rows],
            samples.instruction_B[rows].tolist(),
            choices_BKA,
        )

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Within it the policy is the base model, and nothing can be trained."""
        trained = set(self.parameters)
        try:
            with self._peft.disable_adapter():
                yield
        finally:
            for name, tensor in self._peft.named_parameters():  # PEFT thaws what was frozen, too
                tensor.requires_grad_(name in trained)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Copies of the adapter's tensors under PEFT's names, and of the learned spread."""
        tensors = {name: tensor.detach().clone() for name, tensor in self._trained().items()}
        if LOG_SCALE in self.parameters:
            tensors[LOG_SCALE] = self.parameters[LOG_SCALE].detach().clone()
        return tensors

    def load_adapter(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over `adapter_tensors`. Raises AdapterError when they do not fit."""
        lora = {name: tensor for name, tensor in tensors.items() if name != LOG_SCALE}
        learned = self.parameters.get(LOG_SCALE)
        stored = tensors.get(LOG_SCALE)
        if (learned is None) != (stored is None):
            raise AdapterError(
                f"{LOG_SCALE}: the adapter {'lacks' if stored is None else 'has'} a learned "
                "action scale, this run's algorithm.learn_action_scale says otherwise"
            )
        load_lora_weights(self._peft, lora)
        if learned is not None and stored is not None:
            with torch.no_grad():
                learned.copy_(stored)

    @property
    def past(self) -> dict[str, Tensor]:
        """The frozen update beside the trained one, under PEFT's names; empty if there is none."""
        return dict(self._past)

    def set_past(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over `past`; of any rank, under the trained adapter's alpha / r."""
        self._past = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        set_frozen_update(self._peft, self._past)

    @torch.no_grad()
    def fold(self, coefficient: float, rng: np.random.Generator) -> None:
        """Add `coefficient` times the trained update to the past; the trained one starts afresh.

        A is drawn from `rng` as an adapter's first is (Gaussian, std 1 / r), B is zero.
        """
        trained = self._trained()
        learned = scale_update({n: t.detach().clone() for n, t in trained.items()}, coefficient)
        self.set_past(stack_updates(self._past, learned) if self._past else learned)
        for name, tensor in sorted(trained.items()):
            if ".lora_A." in name:
                drawn = rng.normal(0.0, 1.0 / len(tensor), tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(drawn.astype(np.float32)))
            else:
                tensor.zero_()

    def adapter_files(self) -> dict[str, bytes]:
        """The plain PEFT folder to publish, as file name -> bytes; equal weights, equal bytes.

        Past and trained update are one adapter in it; a trained one that is zero is left out.
        """
        tensors = self._trained()
        if self._past:
            is_zero = not any(t.any() for name, t in tensors.items() if ".lora_B." in name)
            tensors = self._past if is_zero else stack_updates(self._past, tensors)
        with tempfile.TemporaryDirectory(prefix="perennial-adapter-") as folder:
            save_adapter(self._peft, Path(folder), tensors)
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        scale_A = self._scale()
        if LOG_SCALE in self.parameters and scale_A is not None:
            files[action_scale.FILE_NAME] = action_scale.write_scale(scale_A.cpu())
        return files

    def _trained(self) -> dict[str, Tensor]:
        """The trained adapter's own tensors under PEFT's names."""
        return dict(get_peft_model_state_dict(self._peft, save_embedding_layers=False))

    def _scale(self) -> Tensor | None:
        """Spread of each action dimension; within what the server accepts."""
        if self._log_scale_A is None:
            return None
        return self._log_scale_A.exp().clamp(action_scale.SMALLEST, action_scale.LARGEST)


def _one_temperature(samples: Chunks, rows: np.ndarray) -> float:
    if (samples.temperatures_B[rows] != samples.temperatures_B[rows[0]]).any():
        raise ValueError("samples of one batch were drawn at different temperatures")
    return float(samples.temperatures_B[rows[0]])
