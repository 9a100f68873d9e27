"""What a network takes of a GPU's memory while it serves and while it learns, without its weights.

The network is built on the meta device, where tensors have shapes and no data. Then the real code
runs on fake tensors, which have no data either but know which kernel would have made them: a served
forward with its bank of adapters, a forward and backward through a LoRA adapter. Every storage that
appears is counted until it is freed; the highest sum is what the GPU must hold besides the weights.

The figure is that of CPU kernels. Those of a GPU make the same results; what they need on the way
(workspaces, an allocator's gaps) is left out.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agent.model.action_scale import initial_scale
from agent.model.config import OpenVLAConfig
from agent.model.cost import kv_bytes
from agent.model.distributions import action_distribution
from agent.model.full_rank import train_whole_weights
from agent.model.lora import attach_lora
from agent.model.openvla import OpenVLA
from agent.model.recompute import recompute_blocks
from agent.model.slots import SlotBank


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device, and parameters.

    Attributes:
        parameters: of the base, as stored.
        trained: of the adapter, where there is one to train.
        base_bytes: the base's weights and buffers.
        adapter_bytes: what adapters take: the bank of a server, a learner's tensors.
        working_bytes: the most that a forward (and backward) needs besides.
    """

    parameters: int
    trained: int
    base_bytes: int
    adapter_bytes: int
    working_bytes: int


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make until they are freed.

    Attributes:
        live, peak: bytes now, and the most there were.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        """`held` was there before and is not counted."""
        super().__init__()
        self.live = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in held)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def serving_footprint(
    config: OpenVLAConfig,
    dtype: torch.dtype,
    batch: int,
    prompt_tokens: int,
    *,
    slots: int,
    rank: int,
    compiled: bool = False,
    merged: bool = False,
) -> Footprint:
    """Of a server whose forwards have `batch` rows.

    Args:
        slots: adapters held at once, the base (slot 0) included.
        compiled, merged: as the server's settings `compile` and `merge_hot`.
    """
    network = _build(config, dtype)
    parameters = sum(p.numel() for p in network.parameters())
    with _fake(network), torch.inference_mode():
        base_bytes = _held_bytes(network)
        bank = SlotBank(network, slots, rank, masked=compiled, merged=merged)
        adapter_bytes = _held_bytes(network) - base_bytes
        inputs = _inputs(config, dtype, batch, prompt_tokens)
        bank.select([1] * batch)
        with LiveBytes([*network.parameters(), *network.buffers()]) as memory:
            network(*inputs)
        working = memory.peak
    if config.is_autoregressive:  # generated token by token, each step reads the cache of all
        working += batch * kv_bytes(config, config.sequence_length(prompt_tokens))
    return Footprint(parameters, 0, base_bytes, adapter_bytes, working)


def training_footprint(
    config: OpenVLAConfig,
    dtype: torch.dtype,
    batch: int,
    prompt_tokens: int,
    *,
    rank: int,
    recompute: bool,
    full_rank: bool = False,
) -> Footprint:
    """Of a learner whose forwards and backwards have `batch` rows.

    Gradients and the optimiser's moments are left out; keywords as the learner's settings.
    """
    network = _build(config, dtype)
    parameters = sum(p.numel() for p in network.parameters())
    base_bytes = _held_bytes(network)
    with torch.device("meta"):
        adapter = attach_lora(network, rank, alpha=rank)
        if full_rank:
            train_whole_weights(adapter)
    if recompute:
        recompute_blocks(network)
    with _fake(network):
        trained = [p for p in network.parameters() if p.requires_grad]
        for parameter in trained:  # filled from the first step on
            parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in trained if p.grad is not None]
        adapter_bytes = _held_bytes(network) - base_bytes
        inputs = _inputs(config, dtype, batch, prompt_tokens)
        with LiveBytes([*network.parameters(), *network.buffers(), *gradients]) as memory:
            _learn(network, config, dtype, inputs)
    return Footprint(
        parameters, sum(p.numel() for p in trained), base_bytes, adapter_bytes, memory.peak
    )


def _build(config: OpenVLAConfig, dtype: torch.dtype) -> OpenVLA:
    with torch.device("meta"):
        return OpenVLA(config).to(dtype)


def _fake(network: nn.Module) -> FakeTensorMode:
    """The mode in which the network's tensors are fake ones of a CPU."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # the meta tensors themselves
    with mode:
        network.to_empty(device="cpu")
    return mode


def _held_bytes(network: nn.Module) -> int:
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in (*network.parameters(), *network.buffers())
    }
    return sum(storages.values())


def _inputs(
    config: OpenVLAConfig, dtype: torch.dtype, batch: int, prompt_tokens: int
) -> tuple[Tensor | None, ...]:
    """As `OpenVLA.forward` takes them; the causal variant is asked about tokens, too."""
    ids_BL = torch.zeros(batch, prompt_tokens, dtype=torch.int64)
    size = config.image_size
    pixels_BNCHW = torch.zeros(batch, config.num_images, 6, size, size, dtype=dtype)
    proprio_BP = torch.zeros(batch, config.proprio_dim, dtype=dtype) if config.use_proprio else None
    tokens_BKA = _choices(config, batch) if config.is_autoregressive else None
    return ids_BL, pixels_BNCHW, proprio_BP, None, tokens_BKA


def _choices(config: OpenVLAConfig, batch: int) -> Tensor:
    kind = torch.float32 if config.is_regression else torch.int64
    return torch.zeros(batch, config.chunk_size, config.action_dim, dtype=kind)


def _learn(
    network: OpenVLA, config: OpenVLAConfig, dtype: torch.dtype, inputs: tuple[Tensor | None, ...]
) -> None:
    """The learner's forward and backward; products of a bfloat16 base are in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = network(*inputs)
    assert inputs[0] is not None
    scale_A = initial_scale(config) if config.is_regression else None
    distribution = action_distribution(output, 1.0, scale_A)
    logprobs_BKA = distribution.logprobs(_choices(config, len(inputs[0])))
    (logprobs_BKA.sum() + output.hidden_BKAH[:, 0, 0].float().sum()).backward()
