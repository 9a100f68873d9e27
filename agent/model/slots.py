"""Several adapters over one frozen base, in one batch: slots, and what is in them.

Slot 0 is the base. Each batch row names its slot, so one forward serves rows of different
versions; an adapter is installed between two forwards, by a copy on the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent.model.lora import (
    AdapterError,
    LoraSpec,
    check_pair,
    lora_targets,
    pair_adapter_tensors,
)
from agent.model.network import PolicyNetwork
from agent.model.slot_layers import Selection, SlotConv2d, SlotLayer, SlotLinear


@dataclass(frozen=True)
class PreparedAdapter:
    """An adapter that fits the bank, on its device: everything but the copy into a slot.

    Attributes:
        flat: A and B of every slot layer as one vector, padded and scaled, in the bank's dtype.
        ready: on CUDA, when `flat` has arrived.
    """

    flat: Tensor
    ready: torch.cuda.Event | None


class SlotBank:
    """Adapter slots of one served model.

    Args:
        model: the base; its target modules are replaced in place and it is frozen.
        slots: adapters held at once, the base (slot 0) included.
        rank: largest adapter rank that can be loaded.
        masked: serve uniform batches as mixed ones, for `torch.compile` and CUDA graphs.
        merged: keep room for the merged weights of one slot (a copy of all target weights), see
            `merge`.
    """

    def __init__(
        self,
        model: PolicyNetwork,
        slots: int,
        rank: int,
        *,
        masked: bool = False,
        merged: bool = False,
    ) -> None:
        if slots < 2 or rank < 1:
            raise ValueError(f"SlotBank needs slots >= 2 and rank >= 1, got {slots} and {rank}")
        self.model = model.requires_grad_(False)
        self.slots = slots
        self.rank = rank
        self.merged_slot: int | None = None
        self._masked = masked
        self._can_merge = merged
        self._layers: dict[str, SlotLayer] = {}
        weight = next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self._upload = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._selection = Selection(slots, rank, self._device)
        for name in lora_targets(model):
            parent, _, leaf = name.rpartition(".")
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear | nn.Conv2d)
            kind = SlotLinear if isinstance(base, nn.Linear) else SlotConv2d
            layer = kind(base, slots, rank, self._selection, merged)
            setattr(model.get_submodule(parent), leaf, layer)
            self._layers[name] = layer
        self.select([0])

    @torch.no_grad()
    def prepare(self, tensors: dict[str, Tensor], spec: LoraSpec) -> PreparedAdapter:
        """Check an adapter and bring it to the device; no forward sees any of it.

        Any thread may do it while another runs the model. Modules that the adapter's config does
        not name get a zero update.

        Raises:
            AdapterError: names, shapes, rank or values do not fit.
        """
        if spec.rank > self.rank:
            raise AdapterError(
                f"adapter rank {spec.rank} exceeds the server's {self.rank}; raise "
                "policy.adapter_rank"
            )
        pairs = pair_adapter_tensors(self.model, list(self._layers), tensors, spec)
        size = sum(layer.A[0].numel() + layer.B[0].numel() for layer in self._layers.values())
        flat = torch.zeros(size, dtype=self._dtype, pin_memory=self._upload is not None)
        blocks = dict(zip(self._layers, self._blocks(flat), strict=True))
        for name, (a, b) in pairs.items():
            check_pair(name, a, b, self._layers[name].base.weight, spec.rank)
            block_a, block_b = blocks[name]
            block_a[: spec.rank] = a
            block_b[: spec.rank] = b.float().flatten(1).t() * spec.scale
        if not torch.isfinite(flat).all():
            raise AdapterError(f"adapter values overflow the model's {self._dtype} when scaled")
        if self._upload is None:
            return PreparedAdapter(flat, None)
        with torch.cuda.stream(self._upload):
            return PreparedAdapter(
                flat.to(self._device, non_blocking=True), self._upload.record_event()
            )

    @torch.no_grad()
    def install(self, slot: int, adapter: PreparedAdapter) -> None:
        """Copy a prepared adapter into `slot`, on the device.

        The caller owns slot allocation and never installs into a slot that running rows use.

        Raises:
            ValueError: slot 0 (the base) or out of range.
        """
        self._check_adapter_slot(slot)
        if adapter.ready is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(adapter.ready)
            # Allocated on the upload's stream: not to be reused before this stream has copied it.
            adapter.flat.record_stream(stream)
        if slot == self.merged_slot:
            self.merged_slot = None
        places = [(layer.A[slot], layer.B[slot]) for layer in self._layers.values()]
        torch._foreach_copy_(
            [tensor for place in places for tensor in place],
            [tensor for block in self._blocks(adapter.flat) for tensor in block],
        )

    def load(self, slot: int, tensors: dict[str, Tensor], spec: LoraSpec) -> None:
        """`prepare` and `install` at once; on error nothing is changed."""
        self.install(slot, self.prepare(tensors, spec))

    @torch.no_grad()
    def merge(self, slot: int) -> None:
        """Serve batches that are all of `slot` from merged weights, at the base's own cost.

        Always computed from the pristine weights, so nothing drifts; replaces what was merged
        before. Other slots can be installed and served meanwhile; installing into `slot` ends it.
        A compiled model has one graph more for it.

        Raises:
            ValueError: slot 0 or out of range, or a bank made without `merged=True`.
        """
        self._check_adapter_slot(slot)
        if not self._can_merge:
            raise ValueError("this SlotBank has no room for merged weights; use merged=True")
        for layer in self._layers.values():
            layer.merge(slot)
        self.merged_slot = slot

    def select(self, slots_B: list[int]) -> None:
        """Choose the slot of every row of the next forward.

        Raises:
            ValueError: empty, or a slot out of range.
        """
        if not slots_B or min(slots_B) < 0 or max(slots_B) >= self.slots:
            raise ValueError(f"slots must be in 0..{self.slots - 1}, one a row, got {slots_B}")
        selection, first = self._selection, slots_B[0]
        uniform = len(set(slots_B)) == 1
        if uniform and first == self.merged_slot:
            selection.path = "merged"
        elif self._masked or not uniform:
            selection.path = "masked" if self._masked else "gathered"
            selection.write(slots_B)
        else:
            selection.path = "one" if first else "base"
            selection.slot = first

    def _check_adapter_slot(self, slot: int) -> None:
        if not 0 < slot < self.slots:
            raise ValueError(f"slot must be in 1..{self.slots - 1} (0 is the base), got {slot}")

    def _blocks(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """One slot's A (r, in) and B (r, out) of every layer, as views of a flat vector."""
        blocks, start = [], 0
        for layer in self._layers.values():
            views = []
            for like in (layer.A[0], layer.B[0]):
                views.append(flat[start : start + like.numel()].view_as(like))
                start += like.numel()
            blocks.append((views[0], views[1]))
        return blocks
