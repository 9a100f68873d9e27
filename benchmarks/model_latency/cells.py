"""What is measured: one cell per configuration, the most important first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

Kind = Literal["device", "forward", "generate", "swap", "merge", "train"]
Mode = Literal["eager", "graph", "compile", "compile-graph"]

MODES: tuple[Mode, ...] = ("eager", "graph", "compile", "compile-graph")
BATCHES = (1, 2, 4, 8, 16, 32)
IMAGES = (1, 2)


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        kind: device: the machine's own peaks; forward: chunks of the parallel variant; generate:
            the causal variant; swap: from a published adapter to its first answer; merge: the
            merged copy of one adapter; train: one LoRA step.
        mode: eager; a CUDA graph captured from eager; torch.compile; torch.compile with its own
            CUDA graphs (mode="reduce-overhead").
        bank: adapter slots installed, neighbouring rows of the batch on different adapters.
        checkpointing: blocks recomputed in the backward pass.
    """

    kind: Kind
    batch: int = 1
    images: int = 1
    mode: Mode = "eager"
    bank: bool = False
    checkpointing: bool = False

    @property
    def name(self) -> str:
        """Key in the results, e.g. `forward-graph-b8-2im-slots`."""
        if self.kind in ("device", "swap", "merge"):
            return self.kind
        words = [self.kind, self.mode, f"b{self.batch}", f"{self.images}im"]
        if self.bank:
            words.append("slots")
        if self.checkpointing:
            words.append("checkpointed")
        return "-".join(words)


def declare_cells(quick: bool) -> list[Cell]:
    """All cells in the order in which they are measured, each once.

    A short window gets the latency of one robot, what adapters cost, and training; compiling 7B
    takes long, so most of it comes last. `quick` keeps one cell of each sort.
    """
    first = [
        Cell("device"),
        Cell("forward"),
        Cell("forward", mode="graph"),
        Cell("forward", batch=8),
        Cell("forward", bank=True),
        Cell("forward", mode="graph", bank=True),
        Cell("swap"),
        Cell("train", checkpointing=True),
        Cell("train"),
        Cell("forward", images=2),
        Cell("forward", mode="graph", images=2),
        Cell("forward", mode="compile"),
        Cell("forward", mode="compile-graph"),
        Cell("forward", batch=8, bank=True),
        Cell("train", batch=8, checkpointing=True),
        Cell("train", batch=8),
        Cell("generate"),
        Cell("merge"),
    ]
    if quick:
        left_out = [cell for cell in first if cell.kind == "train" and cell.batch > 1]
        return [cell for cell in first if cell not in left_out]
    return list(dict.fromkeys([*first, *_grid()]))


def _grid() -> Iterator[Cell]:
    """Every combination, the cheap modes before the compiled ones."""
    for modes in (MODES[:2], MODES[2:]):
        for bank, images, batch, mode in product((False, True), IMAGES, BATCHES, modes):
            yield Cell("forward", batch, images, mode, bank)
        if "eager" in modes:
            for images, batch, checkpointing in product(IMAGES, BATCHES, (True, False)):
                yield Cell("train", batch, images, checkpointing=checkpointing)
            for batch in BATCHES:
                yield Cell("generate", batch)
