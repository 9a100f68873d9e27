"""The policy as the learner sees it: a frozen OpenVLA-OFT with one trainable LoRA adapter."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from agent.model.actions import Quantiles, normalise_proprio
from agent.model.checkpoint import load_model
from agent.model.lora import attach_lora, load_lora_weights, save_adapter
from agent.model.openvla import OpenVLA
from agent.model.processing import PromptEncoder, images_to_pixels, pad_prompts
from agent.model.sampling import token_entropy, token_logprobs
from agent.wire.errors import ConfigError
from learner.batch import Samples


@dataclass(frozen=True)
class Scores:
    """Log-probability of the recorded tokens and the policy's entropy, both [nats]."""

    logprobs_BKA: Tensor  # with gradient
    entropy_BKA: Tensor  # without


class LoraPolicy:
    """One adapter over one base model, in float32 on the CPU unless the model is elsewhere.

    Args:
        network: the base; it is frozen and wrapped in place.
        seed: of the adapter's initialisation; torch's global RNG is left as it was.
    """

    def __init__(
        self,
        network: OpenVLA,
        prompts: PromptEncoder,
        unnorm_key: str,
        rank: int,
        alpha: float,
        seed: int,
    ) -> None:
        self.network = network
        self.prompts = prompts
        self.device = next(network.parameters()).device
        stats = network.config.norm_stats
        self.action_quantiles = Quantiles.from_stats(stats, unnorm_key)
        self.proprio_quantiles = (
            Quantiles.from_stats(stats, unnorm_key, "proprio")
            if network.config.use_proprio
            else None
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._peft = attach_lora(network, rank, alpha)

    @classmethod
    def load(
        cls, model_dir: Path, unnorm_key: str, rank: int, alpha: float, seed: int
    ) -> "LoraPolicy":
        """The policy of a published model folder; `unnorm_key` "" means its only one.

        Raises:
            ModelFolderError: the folder cannot be used.
            ConfigError: "" is ambiguous.
        """
        network = load_model(model_dir)
        if not unnorm_key:
            keys = sorted(network.config.norm_stats)
            if len(keys) != 1:
                raise ConfigError(f"unnorm_key: {model_dir} has {keys}, choose one of them")
            unnorm_key = keys[0]
        return cls(network, PromptEncoder(model_dir, network.config), unnorm_key, rank, alpha, seed)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The adapter's trainable tensors by name, in module order."""
        return {
            name: tensor for name, tensor in self._peft.named_parameters() if tensor.requires_grad
        }

    def logits(
        self, images_BNHWC: np.ndarray, proprio_BP: np.ndarray, instructions_B: Sequence[str]
    ) -> Tensor:
        """Logits over the action bins, (B, K, A, V), with gradient.

        Args:
            images_BNHWC: u8, cameras in the policy's order.
            proprio_BP: f32 in robot units; ignored by a policy without proprio.
        """
        config = self.network.config
        ids, mask = pad_prompts(
            [self.prompts.encode(text) for text in instructions_B], config.pad_token_id
        )
        proprio = None
        if self.proprio_quantiles is not None:
            proprio = torch.from_numpy(normalise_proprio(proprio_BP, self.proprio_quantiles))
            proprio = proprio.to(self.device)
        pixels = images_to_pixels(images_BNHWC, config.image_size).to(self.device)
        output = self.network(
            ids.to(self.device), pixels, proprio, None if mask is None else mask.to(self.device)
        )
        logits_BKAV: Tensor = output.logits_BKAV
        return logits_BKAV

    def score(self, samples: Samples, rows: np.ndarray) -> Scores:
        """Score the recorded tokens of the given samples, all of one temperature."""
        temperature = float(samples.temperatures_B[rows[0]])
        if (samples.temperatures_B[rows] != samples.temperatures_B[rows[0]]).any():
            raise ValueError("samples of one batch were drawn at different temperatures")
        logits_BKAV = self.logits(
            samples.images_BNHWC[rows],
            samples.proprio_BP[rows],
            samples.instruction_B[rows].tolist(),
        )
        tokens_BKA = torch.from_numpy(samples.tokens_BKA[rows]).to(self.device)
        logprobs_BKA = token_logprobs(logits_BKAV, tokens_BKA, temperature)
        return Scores(logprobs_BKA, token_entropy(logits_BKAV.detach(), temperature))

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Copies of the adapter's tensors under PEFT's names."""
        state = get_peft_model_state_dict(self._peft, save_embedding_layers=False)
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def load_adapter(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over an adapter's tensors. Raises AdapterError when they do not fit."""
        load_lora_weights(self._peft, dict(tensors))

    def adapter_files(self) -> dict[str, bytes]:
        """The plain PEFT folder to publish, as file name -> bytes; equal weights, equal bytes."""
        with tempfile.TemporaryDirectory(prefix="perennial-adapter-") as folder:
            save_adapter(self._peft, Path(folder))
            return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
