"""What the server needs from a policy, and nothing else: it runs the same with or without torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agent.wire.errors import PerennialError


class NoFreeSlot(PerennialError):
    """All adapter slots hold versions; drop one first."""


class AdapterUnusable(PerennialError):
    """The adapter's files are intact but do not fit this policy."""


class UnknownInstruction(PerennialError):
    """The policy cannot read this instruction."""


@dataclass(frozen=True, slots=True)
class ActRequest:
    """One observation to answer.

    images: camera -> u8[H, W, 3] RGB; proprio: f32[P] in the robot's units; version: a resident
    one; temperature 0 is greedy; noise_key: (run_seed, slot hash, step index), each in
    0..2^64-1, of which the sampling noise is a pure function; None draws fresh entropy.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    instruction: str
    version: str
    temperature: float
    noise_key: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class ActResult:
    """One action chunk: K actions of A dimensions.

    actions_KA: f32 in the robot's units; choices_KA: what was drawn, i32 action bins
    0..V-1 or f32 normalised actions; logprobs_KA: f32 [nats] of the choices at the request's
    temperature, at temperature 0 those of temperature 1.
    """

    actions_KA: np.ndarray
    choices_KA: np.ndarray
    logprobs_KA: np.ndarray


@dataclass(frozen=True, slots=True)
class Staged:
    """An adapter read, parsed and checked, ready to be copied in; `content` is the policy's own."""

    version: str
    content: Any


class Policy(Protocol):
    """A batched policy that holds several adapter versions over one frozen base.

    `act`, `install` and `drop` are called by one thread; `stage` by another one at the same time.
    Version "base" is always resident.
    """

    name: str
    base_sha256: str
    chunk_steps: int  # K
    action_dim: int  # A
    proprio_dim: int  # P
    images: dict[str, list[int]]  # camera -> [height, width, 3] of the policy's input
    preprocess_s: float  # spent so far, by `act`, on making observations the network's input

    def check_instruction(self, instruction: str) -> None:
        """Raises UnknownInstruction if `act` could not read it."""

    def act(self, requests: list[ActRequest]) -> list[ActResult]:
        """Results in the order of `requests`; a result depends on its own request only."""

    def normalise(self, actions_KA: np.ndarray) -> np.ndarray:
        """Actions in the robot's units in those of the model, -1 to 1 for most. Any thread."""

    def stray_state(self, proprio_P: np.ndarray) -> str:
        """What of a robot's state is far from all that the policy learned on; "". Any thread."""

    def strays(self, choices_KA: np.ndarray) -> bool:
        """Whether chosen actions are far from all that the policy learned on. Any thread."""

    def stage(self, version: str, folder: Path) -> Staged:
        """Reads a verified adapter folder, off the inference thread. Raises AdapterUnusable."""

    def install(self, staged: Staged) -> None:
        """Copies an adapter in, between batches. Raises NoFreeSlot."""

    def drop(self, version: str) -> None:
        """Frees the slot of a version that no request will name again."""

    def resident(self) -> set[str]:
        """The versions that `act` accepts."""


def slot_hash(noise_key: str, slot_index: int) -> int:
    """The slot's part of the sampling noise key, 0..2^64-1; the same on every machine."""
    digest = hashlib.sha256(f"{noise_key}#{slot_index}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
