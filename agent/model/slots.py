"""Several adapters over one frozen base, in one batch.

Every target module becomes a slot layer with stacked, static buffers A (S, r, in) and
B (S, out, r): the scale is folded into B, smaller ranks are zero-padded, slot 0 is the base. Each
batch row names its slot, so one forward serves rows of different versions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.model.lora import AdapterError, LoraSpec, lora_targets, pair_adapter_tensors
from agent.model.openvla import OpenVLA


class Selection:
    """The slot of every row of the coming forward, shared by all slot layers of a bank."""

    def __init__(self) -> None:
        self.uniform: int | None = 0
        self.slots_B = torch.zeros(1, dtype=torch.long)

    def rows(self, leading: int) -> Tensor:
        """Slot per leading row: vision flattens (batch, image), image fastest."""
        return self.slots_B.repeat_interleave(leading // len(self.slots_B))


class SlotLayer(nn.Module):
    """What the linear and the convolutional slot layer share: buffers and in-place loading."""

    A: Tensor
    B: Tensor

    def __init__(
        self, base: nn.Linear | nn.Conv2d, slots: int, rank: int, selection: Selection
    ) -> None:
        super().__init__()
        self.base = base
        self.selection = selection
        weight = base.weight
        a_shape = (slots, rank, *weight.shape[1:])
        b_shape = (slots, weight.shape[0], rank, *([1] * (weight.ndim - 2)))
        for name, shape in (("A", a_shape), ("B", b_shape)):
            zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
            self.register_buffer(name, zeros, persistent=False)

    def check(self, name: str, a: Tensor, b: Tensor, rank: int) -> None:
        """Refuse tensors whose shape is not this layer's at `rank`."""
        expected_a = (rank, *self.A.shape[2:])
        expected_b = (self.B.shape[1], rank, *self.B.shape[3:])
        if tuple(a.shape) != expected_a or tuple(b.shape) != expected_b:
            raise AdapterError(
                f"adapter shapes of {name}: expected A {expected_a} and B {expected_b}, got "
                f"{tuple(a.shape)} and {tuple(b.shape)}"
            )

    def write(self, slot: int, a: Tensor, b: Tensor, scale: float) -> None:
        """Copy one adapter into `slot`; unused rank rows become zero."""
        rank = len(a)
        self.A[slot].zero_()
        self.B[slot].zero_()
        self.A[slot, :rank] = a.to(self.A)
        self.B[slot, :, :rank] = b.to(self.B) * scale


class SlotLinear(SlotLayer):
    """A linear layer plus each row's own low-rank update."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, positions, in) -> (B, positions, out)."""
        return self._update(x, self.base(x), self.B)

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Outputs start..stop-1 only (the action bins of `lm_head`)."""
        return self._update(x, F.linear(x, self.base.weight[start:stop]), self.B[:, start:stop])

    def _update(self, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        slot = self.selection.uniform
        if slot == 0:
            return y
        if slot is not None:
            return y + F.linear(F.linear(x, self.A[slot]), b[slot])
        rows = self.selection.rows(len(x))
        low = torch.bmm(x, self.A[rows].transpose(1, 2))
        return torch.baddbmm(y, low, b[rows].transpose(1, 2))


class SlotConv2d(SlotLayer):
    """A patch convolution plus each row's own low-rank update."""

    base: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, out, h, w)."""
        y, slot, stride = self.base(x), self.selection.uniform, self.base.stride
        if slot == 0:
            return y
        if slot is not None:
            return y + F.conv2d(F.conv2d(x, self.A[slot], stride=stride), self.B[slot])
        rows = self.selection.rows(len(x))
        slots, rank = self.A.shape[:2]
        low = F.conv2d(x, self.A.flatten(0, 1), stride=stride)
        low = low.unflatten(1, (slots, rank))[torch.arange(len(x), device=x.device), rows]
        update = torch.bmm(self.B[rows].flatten(2), low.flatten(2))
        return y + update.unflatten(2, y.shape[2:])


@dataclass(frozen=True)
class PreparedAdapter:
    """An adapter that fits the model: {module: (A, B)} and the factor on B A x."""

    pairs: dict[str, tuple[Tensor, Tensor]]
    scale: float


class SlotBank:
    """Adapter slots of one served model.

    Args:
        model: the base; its target modules are replaced in place and it is frozen.
        slots: adapters held at once, the base (slot 0) included.
        rank: largest adapter rank that can be loaded.
    """

    def __init__(self, model: OpenVLA, slots: int, rank: int) -> None:
        if slots < 2 or rank < 1:
            raise ValueError(f"SlotBank needs slots >= 2 and rank >= 1, got {slots} and {rank}")
        self.model = model.requires_grad_(False)
        self.slots = slots
        self.rank = rank
        self._selection = Selection()
        self._layers: dict[str, SlotLayer] = {}
        for name in lora_targets(model):
            parent, _, leaf = name.rpartition(".")
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear | nn.Conv2d)
            kind = SlotLinear if isinstance(base, nn.Linear) else SlotConv2d
            layer = kind(base, slots, rank, self._selection)
            setattr(model.get_submodule(parent), leaf, layer)
            self._layers[name] = layer

    def prepare(self, tensors: dict[str, Tensor], spec: LoraSpec) -> PreparedAdapter:
        """Check an adapter against the model; changes nothing, so any thread may do it.

        Raises:
            AdapterError: names, shapes, rank or values do not fit.
        """
        if spec.rank > self.rank:
            raise AdapterError(
                f"adapter rank {spec.rank} exceeds the bank's {self.rank}; raise the server's "
                "maximum rank"
            )
        pairs = pair_adapter_tensors(self.model, list(self._layers), tensors)
        for name, (a, b) in pairs.items():
            self._layers[name].check(name, a, b, spec.rank)
        return PreparedAdapter(pairs, spec.scale)

    @torch.no_grad()
    def install(self, slot: int, adapter: PreparedAdapter) -> None:
        """Copy a prepared adapter into `slot`.

        The caller owns slot allocation and never installs into a slot that running rows use.

        Raises:
            ValueError: slot 0 (the base) or out of range.
        """
        if not 0 < slot < self.slots:
            raise ValueError(f"slot must be in 1..{self.slots - 1} (0 is the base), got {slot}")
        for name, (a, b) in adapter.pairs.items():
            self._layers[name].write(slot, a, b, adapter.scale)

    def load(self, slot: int, tensors: dict[str, Tensor], spec: LoraSpec) -> None:
        """`prepare` and `install` at once; on error nothing is changed."""
        self.install(slot, self.prepare(tensors, spec))

    def select(self, slots_B: list[int]) -> None:
        """Choose the slot of every row of the next forward.

        Raises:
            ValueError: empty, or a slot out of range.
        """
        if not slots_B or min(slots_B) < 0 or max(slots_B) >= self.slots:
            raise ValueError(f"slots must be in 0..{self.slots - 1}, one a row, got {slots_B}")
        self._selection.uniform = slots_B[0] if len(set(slots_B)) == 1 else None
        device = next(self.model.parameters()).device
        self._selection.slots_B = torch.tensor(slots_B, device=device)
