"""What one axis of perturbation does to a body, and how it leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Change:
    """`array[index]` is `value` whenever the body is used in a perturbed episode.

    array: a field of a compiled model that bodies may share.
    """

    array: np.ndarray
    index: Any
    value: Any


@contextmanager
def changed(changes: Sequence[Change]) -> Iterator[None]:
    """Makes the changes and takes them back to the last bit."""
    before = [np.copy(each.array[each.index]) for each in changes]
    try:
        for each in changes:
            each.array[each.index] = each.value
        yield
    finally:
        for each, value in reversed(list(zip(changes, before, strict=True))):
            each.array[each.index] = value


class Axis:
    """One axis on one body; this one changes nothing. strength: 1 is the standard one.

    The hooks get random numbers of (task, split, init state, axis) alone.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def start(self, rng: np.random.Generator) -> list[Change]:
        """After the init state was set: moves what is moved, and says what else is changed.

        Raises BridgeError where this init state leaves nothing to change.
        """
        return []

    def before_step(self, step: int) -> None:
        """Before control step `step` of the episode."""

    def showing(self) -> AbstractContextManager[None]:
        """Around every rendering."""
        return nullcontext()

    def see(self, images: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        """Replaces images, camera -> u8[H, W, 3]; the arrays themselves stay as they are."""


def unit_vector(rng: np.random.Generator, dimensions: int) -> np.ndarray:
    """A random direction, f64[dimensions]."""
    vector = rng.normal(size=dimensions)
    return vector / np.linalg.norm(vector)
