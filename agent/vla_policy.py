"""OpenVLA-OFT as a served policy: several adapter versions, batches of fixed shape.

Every forward has exactly `micro_batch` rows of one sequence length; a short batch repeats a row. So
a row's result does not depend on who shares its batch, and sampling noise is a function of the
request's key alone: the same request gives the same tokens at any load.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.config import PolicyConfig
from agent.model.actions import Quantiles, normalise_proprio, tokens_to_env_actions
from agent.model.checkpoint import hash_folder, load_model
from agent.model.config import ModelFolderError
from agent.model.lora import AdapterError, read_adapter
from agent.model.openvla import OpenVLA
from agent.model.processing import PromptEncoder, images_to_pixels
from agent.model.sampling import gumbel_noise, sample_tokens, token_logprobs
from agent.model.slots import SlotBank
from agent.policy import (
    ActRequest,
    ActResult,
    AdapterUnusable,
    NoFreeSlot,
    Staged,
    UnknownInstruction,
)
from agent.wire.errors import ConfigError
from agent.wire.messages import BASE_VERSION

NANO_FOLDER = Path(__file__).parent / "assets" / "nano"


def load_vla_policy(config: PolicyConfig) -> VlaPolicy:
    """The policy of a model folder. Raises ConfigError for a folder or setting that cannot work."""
    folder = Path(config.model_dir) if config.model_dir else NANO_FOLDER
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"policy.device: {config.device} is not there; use policy.device=cpu")
    try:
        model = load_model(folder, getattr(torch, config.dtype), config.device)
        prompts = PromptEncoder(folder, model.config)
        base_sha256 = hash_folder(folder)
    except (ModelFolderError, OSError) as error:
        raise ConfigError(f"policy.model_dir: {error}") from error
    cameras, wanted = config.cameras, model.config.num_images
    if len(cameras) < wanted:
        raise ConfigError(f"policy.cameras: the model sees {wanted} images, got {cameras}")
    unnorm_key = config.unnorm_key
    if not unnorm_key:
        keys = sorted(model.config.norm_stats)
        if len(keys) != 1:
            raise ConfigError(f"policy.unnorm_key: the model has {keys}; choose one")
        unnorm_key = keys[0]
    try:
        return VlaPolicy(
            model,
            prompts,
            unnorm_key,
            name=folder.resolve().name,
            base_sha256=base_sha256,
            cameras=tuple(cameras[:wanted]),
            micro_batch=config.micro_batch,
            adapter_slots=config.adapter_slots,
            adapter_rank=config.adapter_rank,
        )
    except KeyError as error:
        raise ConfigError(f"policy.unnorm_key: {error.args[0]}") from error


class VlaPolicy:
    """See `agent.policy.Policy`.

    Args:
        model: the base, taken over and changed in place.
        unnorm_key: whose statistics turn tokens into robot units. Raises KeyError if unknown.
        cameras: the model's images, in its order.
        micro_batch: rows of every forward.
        adapter_slots: versions held at once, the base not counted.
    """

    def __init__(
        self,
        model: OpenVLA,
        prompts: PromptEncoder,
        unnorm_key: str,
        *,
        name: str,
        base_sha256: str,
        cameras: tuple[str, ...],
        micro_batch: int,
        adapter_slots: int,
        adapter_rank: int,
    ) -> None:
        config = model.config
        self.name = name
        self.base_sha256 = base_sha256
        self.chunk_steps = config.chunk_size
        self.action_dim = config.action_dim
        self.proprio_dim = config.proprio_dim
        self.images = {camera: [config.image_size, config.image_size, 3] for camera in cameras}
        self._prompts = prompts
        self._actions = Quantiles.from_stats(config.norm_stats, unnorm_key)
        self._proprio = (
            Quantiles.from_stats(config.norm_stats, unnorm_key, "proprio")
            if config.use_proprio
            else None
        )
        self._micro_batch = micro_batch
        self._bank = SlotBank(model, adapter_slots + 1, adapter_rank)
        self._slots = {BASE_VERSION: 0}
        parameter = next(model.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def check_instruction(self, instruction: str) -> None:
        """Raises UnknownInstruction for words outside the vocabulary, or too many of them."""
        try:
            self._prompts.encode(instruction)
        except ValueError as error:
            raise UnknownInstruction(str(error)) from error

    def act(self, requests: list[ActRequest]) -> list[ActResult]:
        """Results in the order of `requests`."""
        results: dict[int, ActResult] = {}
        for rows in self._micro_batches(requests):
            batch = [requests[row] for row in rows]
            results.update(zip(rows, self._act_micro_batch(batch), strict=True))
        return [results[row] for row in range(len(requests))]

    def stage(self, version: str, folder: Path) -> Staged:
        """Reads and checks an adapter; touches nothing that `act` uses."""
        try:
            return Staged(version, self._bank.prepare(*read_adapter(folder)))
        except AdapterError as error:
            raise AdapterUnusable(f"{version}: {error}") from error

    def install(self, staged: Staged) -> None:
        """Copies an adapter into a free slot."""
        free = set(range(1, self._bank.slots)) - set(self._slots.values())
        if not free:
            raise NoFreeSlot(f"{self._bank.slots - 1} adapter slots, all in use")
        self._bank.install(min(free), staged.content)
        self._slots[staged.version] = min(free)

    def drop(self, version: str) -> None:
        """Frees a version's slot."""
        self._slots.pop(version, None)

    def resident(self) -> set[str]:
        """The base and what was installed."""
        return set(self._slots)

    def _micro_batches(self, requests: list[ActRequest]) -> Iterator[list[int]]:
        """Row numbers of each forward: one prompt length, versions together where possible."""
        by_length: dict[int, list[int]] = {}
        for row in sorted(range(len(requests)), key=lambda row: requests[row].version):
            length = len(self._prompts.encode(requests[row].instruction))
            by_length.setdefault(length, []).append(row)
        for rows in by_length.values():
            for start in range(0, len(rows), self._micro_batch):
                yield rows[start : start + self._micro_batch]

    @torch.inference_mode()
    def _act_micro_batch(self, requests: list[ActRequest]) -> list[ActResult]:
        padded = requests + requests[:1] * (self._micro_batch - len(requests))
        ids_BL = torch.tensor([self._prompts.encode(request.instruction) for request in padded])
        pixels_BNCHW = torch.stack([self._pixels(request) for request in requests])
        missing = len(padded) - len(requests)
        pixels_BNCHW = torch.cat([pixels_BNCHW, pixels_BNCHW[:1].expand(missing, -1, -1, -1, -1)])
        self._bank.select([self._slots[request.version] for request in padded])
        logits_BKAV = self._bank.model(
            ids_BL.to(self._device),
            pixels_BNCHW.to(self._device, self._dtype),
            self._normalised_proprio(padded),
        ).logits_BKAV.cpu()
        return [
            self._sample(request, logits_BKAV[row : row + 1])
            for row, request in enumerate(requests)
        ]

    def _pixels(self, request: ActRequest) -> Tensor:
        """(N, 6, S, S); cameras may have different sizes."""
        size = self._bank.model.config.image_size
        images = [request.images[camera] for camera in self.images]
        if len({image.shape for image in images}) == 1:
            return images_to_pixels(np.stack(images), size)
        return torch.stack([images_to_pixels(image, size) for image in images])

    def _normalised_proprio(self, requests: list[ActRequest]) -> Tensor | None:
        if self._proprio is None:
            return None
        proprio_BP = np.stack([request.proprio for request in requests])
        normalised = normalise_proprio(proprio_BP, self._proprio)
        return torch.from_numpy(normalised).to(self._device, self._dtype)

    def _sample(self, request: ActRequest, logits_1KAV: Tensor) -> ActResult:
        noise = None
        if request.temperature > 0:
            seed, slot, step = request.noise_key or (secrets.randbits(64), secrets.randbits(64), 0)
            noise = torch.from_numpy(gumbel_noise(seed, slot, step, tuple(logits_1KAV.shape)))
        tokens_1KA = sample_tokens(logits_1KAV, request.temperature, noise)
        logprobs_1KA = token_logprobs(logits_1KAV, tokens_1KA, request.temperature)
        tokens_KA = tokens_1KA[0].numpy().astype(np.int32)
        n_bins = logits_1KAV.shape[-1]
        actions_KA = tokens_to_env_actions(tokens_KA, self._actions, n_bins)
        return ActResult(
            actions_KA.astype(np.float32), tokens_KA, logprobs_1KA[0].numpy().astype(np.float32)
        )
