"""An OpenVLA checkpoint as a served policy: several adapter versions, batches of fixed shape.

Every forward has exactly `micro_batch` rows of one sequence length; a short batch repeats a row.
Rows of several versions meet only where every batch takes the same path through the adapters
(compiled): the other paths round apart. So a row's result does not depend on who shares its batch,
and sampling noise is a function of the request's key alone: the same request gives the same actions
at any load.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.model.action_scale import initial_scale, read_scale
from agent.model.autoregressive import generate
from agent.model.distributions import action_distribution
from agent.model.lora import AdapterError, changes_nothing, read_adapter
from agent.model.network import ActionOutput
from agent.model.policy_model import PolicyModel
from agent.model.sampling import gumbel_noise, laplace_noise
from agent.model.slots import PreparedAdapter, SlotBank
from agent.policy import (
    ActRequest,
    ActResult,
    AdapterUnusable,
    NoFreeSlot,
    Staged,
    UnknownInstruction,
)
from agent.wire.messages import BASE_VERSION

log = logging.getLogger(__name__)

HOT_BATCHES = 8  # merging passes over all weights once: not for a version that is soon replaced
WARM_UP_LENGTHS = (16, 17)  # of prompts [tokens]; from the second on, a graph serves any length


@dataclass(frozen=True)
class StagedAdapter:
    """An adapter that fits: its tensors, and the spread of a regressing policy's actions."""

    prepared: PreparedAdapter
    scale_A: Tensor | None


class VlaPolicy:
    """See `agent.policy.Policy`.

    Args:
        model: the base, taken over; its network is changed in place.
        micro_batch: rows of every forward.
        adapter_slots: versions held at once, the base not counted.
        adapter_rank: the largest that can be loaded.
        compiled: run through torch.compile; after `warm_up`, neither a version, a mix of versions
            nor a prompt length compiles again.
        merge_hot: serve a version from merged weights once it had `HOT_BATCHES` forwards in a
            row to itself. Results then differ in their last bits with the load.
    """

    def __init__(
        self,
        model: PolicyModel,
        *,
        micro_batch: int,
        adapter_slots: int,
        adapter_rank: int,
        compiled: bool = False,
        merge_hot: bool = False,
    ) -> None:
        config = model.config
        self.name = model.name
        self.base_sha256 = model.base_sha256
        self.chunk_steps = config.chunk_size
        self.action_dim = config.action_dim
        self.proprio_dim = config.proprio_dim
        size = config.image_size
        self.images = {camera: [size, size, 3] for camera in model.cameras}
        self.preprocess_s = 0.0
        self._model, self._config = model, config
        self._micro_batch = micro_batch
        self._bank = SlotBank(
            model.network, adapter_slots + 1, adapter_rank, masked=compiled, merged=merge_hot
        )
        self._forward = torch.compile(model.network, fullgraph=True) if compiled else model.network
        self._merge_hot, self._may_mix_versions = merge_hot, compiled
        self._alone = (0, 0)  # the slot that had the last forwards to itself, and how many
        self._slots = {BASE_VERSION: 0}
        self._scales = {BASE_VERSION: initial_scale(config) if config.is_regression else None}
        self._dtype = next(model.network.parameters()).dtype

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compiles all that `act` will run, so that no request waits for it."""
        config, device, rows = self._config, self._model.device, self._micro_batch
        shape = (rows, config.num_images, 6, config.image_size, config.image_size)
        pixels_BNCHW = torch.zeros(shape, dtype=self._dtype, device=device)
        proprio_BP = torch.zeros(rows, config.proprio_dim, dtype=self._dtype, device=device)
        if self._merge_hot:
            self._bank.merge(1)  # still empty; the first install into it ends that
        for slot in (0, 1) if self._merge_hot else (0,):
            self._bank.select([slot] * rows)
            for length in WARM_UP_LENGTHS:
                ids_BL = torch.full((rows, length), config.bos_token_id, device=device)
                self._forward(ids_BL, pixels_BNCHW, proprio_BP if config.use_proprio else None)

    def check_instruction(self, instruction: str) -> None:
        """Raises UnknownInstruction for words outside the vocabulary, or too many of them."""
        try:
            self._model.prompts.encode(instruction)
        except ValueError as error:
            raise UnknownInstruction(str(error)) from error

    def act(self, requests: list[ActRequest]) -> list[ActResult]:
        """Results in the order of `requests`."""
        results: dict[int, ActResult] = {}
        for rows in self._micro_batches(requests):
            batch = [requests[row] for row in rows]
            results.update(zip(rows, self._act_micro_batch(batch), strict=True))
        return [results[row] for row in range(len(requests))]

    def normalise(self, actions_KA: np.ndarray) -> np.ndarray:
        """By the statistics of the data set that the policy acts for."""
        return self._model.actions.to_normalised(actions_KA)

    def stray_state(self, proprio_P: np.ndarray) -> str:
        """By the same statistics; the network's input is clipped to them, as published."""
        return self._model.stray_state(proprio_P)

    def strays(self, choices_KA: np.ndarray) -> bool:
        """By the same statistics; only a regressing policy can."""
        return self._model.strays(choices_KA)

    def stage(self, version: str, folder: Path) -> Staged:
        """Reads and checks an adapter; touches nothing that `act` uses."""
        try:
            scale_A = read_scale(folder, self._config) if self._config.is_regression else None
            tensors, spec = read_adapter(folder)
            prepared = self._bank.prepare(tensors, spec)
        except AdapterError as error:
            raise AdapterUnusable(f"{version}: {error}") from error
        if changes_nothing(tensors, spec):
            log.warning("%s changes nothing: its alpha, or all of A or B, is zero", version)
        return Staged(version, StagedAdapter(prepared, scale_A))

    def install(self, staged: Staged) -> None:
        """Copies an adapter into a free slot."""
        free = set(range(1, self._bank.slots)) - set(self._slots.values())
        if not free:
            raise NoFreeSlot(f"{self._bank.slots - 1} adapter slots, all in use")
        self._bank.install(min(free), staged.content.prepared)
        self._alone = (0, 0)  # counted another version in this slot
        self._slots[staged.version] = min(free)
        self._scales[staged.version] = staged.content.scale_A

    def drop(self, version: str) -> None:
        """Frees a version's slot."""
        self._slots.pop(version, None)
        self._scales.pop(version, None)

    def resident(self) -> set[str]:
        """The base and what was installed."""
        return set(self._slots)

    def _micro_batches(self, requests: list[ActRequest]) -> Iterator[list[int]]:
        """Row numbers of each forward: one prompt length, and one version unless they may mix."""
        alike: dict[tuple[int, str], list[int]] = {}
        for row in sorted(range(len(requests)), key=lambda row: requests[row].version):
            length = len(self._model.prompts.encode(requests[row].instruction))
            version = "" if self._may_mix_versions else requests[row].version
            alike.setdefault((length, version), []).append(row)
        for rows in alike.values():
            for start in range(0, len(rows), self._micro_batch):
                yield rows[start : start + self._micro_batch]

    @torch.inference_mode()
    def _act_micro_batch(self, requests: list[ActRequest]) -> list[ActResult]:
        padded = requests + requests[:1] * (self._micro_batch - len(requests))
        device = self._model.device
        started_s = time.perf_counter()
        ids_BL = torch.tensor(
            [self._model.prompts.encode(request.instruction) for request in padded], device=device
        )
        pixels = [self._pixels(request) for request in requests]
        pixels += pixels[:1] * (len(padded) - len(requests))
        pixels_BNCHW = torch.stack(pixels).to(device, self._dtype)
        self.preprocess_s += time.perf_counter() - started_s
        self._select([self._slots[request.version] for request in padded])
        if self._config.is_autoregressive:
            return self._generate(requests, padded, ids_BL, pixels_BNCHW)
        proprio_BP = self._model.proprio_input(np.stack([request.proprio for request in padded]))
        output = self._forward(
            ids_BL, pixels_BNCHW, None if proprio_BP is None else proprio_BP.to(self._dtype)
        )
        greedy_BKA = self._greedy_tokens(requests, output.hidden_BKAH)
        output = _on_cpu(output)
        return [
            self._draw(request, _row(output, row), None if greedy_BKA is None else greedy_BKA[row])
            for row, request in enumerate(requests)
        ]

    def _select(self, slots_B: list[int]) -> None:
        first = slots_B[0]
        if self._merge_hot and len(set(slots_B)) == 1:
            slot, count = self._alone
            self._alone = (first, count + 1 if slot == first else 1)
            if first and first != self._bank.merged_slot and self._alone[1] >= HOT_BATCHES:
                self._bank.merge(first)
        else:
            self._alone = (0, 0)
        self._bank.select(slots_B)

    def _pixels(self, request: ActRequest) -> Tensor:
        """(N, 6, S, S); cameras may have different sizes."""
        return self._model.images.camera_pixels([request.images[name] for name in self.images])

    def _greedy_tokens(self, requests: list[ActRequest], hidden_BKAH: Tensor) -> Tensor | None:
        """What greedy rows choose when that is not the likeliest bin of the distribution."""
        is_greedy = any(request.temperature == 0 for request in requests)
        if self._config.is_regression or self._config.greedy_range == "bins" or not is_greedy:
            return None
        return self._model.network.greedy_tokens(hidden_BKAH).cpu()

    def _generate(
        self,
        requests: list[ActRequest],
        padded: list[ActRequest],
        ids_BL: Tensor,
        pixels_BNCHW: Tensor,
    ) -> list[ActResult]:
        """The causal variant: each token is drawn before the next one's forward."""
        shape = (1, self.chunk_steps, self.action_dim, self._config.n_action_bins)
        noise = [_noise(gumbel_noise, request, shape) for request in requests]
        noise += noise[:1] * (len(padded) - len(requests))
        temperatures_B = torch.tensor(
            [r.temperature for r in padded], dtype=torch.float32, device=ids_BL.device
        )
        generated = generate(
            self._model.network,
            ids_BL,
            pixels_BNCHW,
            temperatures_B,
            torch.cat(noise).to(ids_BL.device),
        )
        output = _on_cpu(ActionOutput(generated.logits_BKAV, None, generated.hidden_BKAH))
        tokens_BKA = generated.tokens_BKA.cpu()
        return [
            self._draw(request, _row(output, row), tokens_BKA[row])
            for row, request in enumerate(requests)
        ]

    def _draw(self, request: ActRequest, output: ActionOutput, chosen: Tensor | None) -> ActResult:
        """One row's actions: drawn from its distribution unless `chosen` (K, A) are given."""
        scale_A = self._scales[request.version]
        distribution = action_distribution(output, request.temperature, scale_A)
        if chosen is None:
            draw = laplace_noise if self._config.is_regression else gumbel_noise
            choices_1KA = distribution.sample(_noise(draw, request, distribution.noise_shape))
        else:
            choices_1KA = chosen.unsqueeze(0)
        choices_KA = choices_1KA[0].numpy()
        choices_KA = choices_KA.astype(np.float32 if self._config.is_regression else np.int32)
        return ActResult(
            self._model.actions.to_env(choices_KA).astype(np.float32),
            choices_KA,
            distribution.logprobs(choices_1KA)[0].numpy().astype(np.float32),
        )


def _on_cpu(output: ActionOutput) -> ActionOutput:
    """What actions are drawn from, in one copy; the hidden states are larger and stay behind."""
    logits_BKAV, means_BKA, hidden_BKAH = output
    return ActionOutput(
        None if logits_BKAV is None else logits_BKAV.cpu(),
        None if means_BKA is None else means_BKA.cpu(),
        hidden_BKAH,
    )


def _row(output: ActionOutput, row: int) -> ActionOutput:
    """One row of a batch."""
    return ActionOutput(*(None if part is None else part[row : row + 1] for part in output))


def _noise(draw: Callable[..., np.ndarray], request: ActRequest, shape: tuple[int, ...]) -> Tensor:
    """The request's noise, zeros for a greedy one."""
    if request.temperature == 0:
        return torch.zeros(shape)
    key = request.noise_key or (secrets.randbits(64), secrets.randbits(64), 0)
    return torch.from_numpy(draw(*key, shape))
