"""Layers that serve several low-rank updates of one weight, each batch row its own.

A slot layer holds stacked, static buffers A (S, r, in) and B (S, r, out); the scale is folded into
B, smaller ranks are zero-padded, slot 0 is the base and stays zero. Path `masked` computes

    y = W x + B_all (mask * (A_all x)),    A_all (S r, in), B_all (out, S r)

where a row's mask keeps the r columns of its slot. That graph does not depend on the data: neither
installing an adapter nor choosing other slots makes a compiled model recompile. The other paths
are cheaper where nothing is compiled.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Path = Literal["base", "one", "gathered", "masked", "merged"]


class Selection:
    """What every row of the coming forward uses, shared by all slot layers of a bank.

    Attributes:
        path: `base`, `one` and `merged` serve uniform batches, `gathered` and `masked` any.
        slot: of path `one`.
        slots_B: of path `gathered`.
        active_BR: bool (B, S r), the columns of each row's slot, slot 0 left out; one static
            tensor a batch size.
    """

    def __init__(self, slots: int, rank: int, device: torch.device) -> None:
        self.path: Path = "base"
        self.slot = 0
        self._columns = torch.eye(slots, dtype=torch.bool)[:, 1:].repeat_interleave(rank, dim=1)
        self._device = device
        self._static: dict[int, Tensor] = {}
        self.write([0])

    # A tensor made in inference mode could not be written outside it, and would be another one to
    # a compiled graph.
    @torch.inference_mode(False)
    def write(self, slots_B: list[int]) -> None:
        """Set the slot of every row; the mask of this batch size is filled in place."""
        self.slots_B = torch.tensor(slots_B, device=self._device)
        active_BR = self._columns[slots_B]
        if len(slots_B) not in self._static:
            self._static[len(slots_B)] = torch.empty_like(active_BR, device=self._device)
        self.active_BR = self._static[len(slots_B)]
        self.active_BR.copy_(active_BR)

    def rows(self, leading: int) -> Tensor:
        """Slot per leading row: vision flattens (batch, image), image fastest."""
        return self.slots_B.repeat_interleave(leading // len(self.slots_B))

    def columns(self, shape: torch.Size) -> Tensor:
        """`active_BR` likewise, for an x of `shape` (leading, ..., in): (leading, 1..., S r)."""
        images = shape[0] // len(self.active_BR)
        spread = self.active_BR[:, None].expand(-1, images, -1)
        return spread.reshape(shape[0], *[1] * (len(shape) - 2), -1)


class SlotLayer(nn.Module):
    """What the linear and the convolutional slot layer share: buffers and merging."""

    A: Tensor
    B: Tensor
    merged: Tensor | None

    def __init__(
        self, base: nn.Linear | nn.Conv2d, slots: int, rank: int, selection: Selection, merged: bool
    ) -> None:
        super().__init__()
        self.base = base
        self.selection = selection
        weight = base.weight
        shapes = {"A": (slots, rank, *weight.shape[1:]), "B": (slots, rank, len(weight))}
        for name, shape in shapes.items():
            zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
            self.register_buffer(name, zeros, persistent=False)
        self.register_buffer("merged", weight.clone() if merged else None, persistent=False)

    @property
    def weight(self) -> Tensor:
        """What the coming forward multiplies with: pristine, or merged."""
        if self.selection.path == "merged":
            assert self.merged is not None
            return self.merged
        return self.base.weight

    def merge(self, slot: int) -> None:
        """`merged` = W + B A of `slot`, summed in float32 and rounded once; W stays as it is."""
        assert self.merged is not None
        a, b = self.A[slot].flatten(1), self.B[slot]
        update = b.float().t() @ a.float()
        self.merged.copy_(self.base.weight.float() + update.view_as(self.merged))


class SlotLinear(SlotLayer):
    """A linear layer plus each row's own low-rank update."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out)."""
        return self._update(x, F.linear(x, self.weight, self.base.bias), self.B)

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Outputs start..stop-1 only (the action bins of `lm_head`, which has no bias)."""
        return self._update(x, F.linear(x, self.weight[start:stop]), self.B[..., start:stop])

    def _update(self, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        path = self.selection.path
        if path in ("base", "merged"):
            return y
        if path == "one":
            slot = self.selection.slot
            return y + F.linear(x, self.A[slot]) @ b[slot]
        if path == "gathered":
            rows, positions = self.selection.rows(len(x)), (len(x), -1)
            low = torch.bmm(x.reshape(*positions, x.shape[-1]), self.A[rows].transpose(1, 2))
            return torch.baddbmm(y.reshape(*positions, y.shape[-1]), low, b[rows]).view_as(y)
        low = F.linear(x, self.A[1:].flatten(0, 1))
        # Not a product: what overflowed in the columns of another row must not become 0 * inf.
        low = torch.where(self.selection.columns(x.shape), low, 0.0)
        return y + low @ b[1:].flatten(0, 1)


class SlotConv2d(SlotLayer):
    """A convolution plus each row's own low-rank update; `gathered` is `masked` here."""

    base: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, h, w)."""
        path = self.selection.path
        steps = {"stride": self.base.stride, "padding": self.base.padding}
        y = F.conv2d(x, self.weight, self.base.bias, **steps)
        if path in ("base", "merged"):
            return y
        if path == "one":
            a, b = self.A[self.selection.slot], self.B[self.selection.slot]
            low = F.conv2d(x, a, **steps).flatten(2)
        else:
            a, b = self.A[1:].flatten(0, 1), self.B[1:].flatten(0, 1)
            low = F.conv2d(x, a, **steps).flatten(2)
            low = torch.where(self.selection.columns(low.shape).mT, low, 0.0)
        return y + (b.t() @ low).unflatten(2, y.shape[2:])
