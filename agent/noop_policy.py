"""A policy that answers zeros: for benchmarks of the server alone, and for its tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from agent.policy import ActRequest, ActResult, NoFreeSlot, Staged
from agent.wire.messages import BASE_VERSION


class NoopPolicy:
    """Zeros for every observation; adapters are accepted and have no effect.

    Args:
        adapter_slots: versions held at once, the base not counted.
    """

    name = "noop"
    base_sha256 = hashlib.sha256(b"noop").hexdigest()
    preprocess_s = 0.0

    def __init__(
        self,
        chunk_steps: int = 8,
        action_dim: int = 7,
        proprio_dim: int = 8,
        cameras: tuple[str, ...] = ("agentview", "wrist"),
        image_size: int = 224,
        adapter_slots: int = 4,
    ) -> None:
        self.chunk_steps = chunk_steps
        self.action_dim = action_dim
        self.proprio_dim = proprio_dim
        self.images = {camera: [image_size, image_size, 3] for camera in cameras}
        self._adapter_slots = adapter_slots
        self._resident = {BASE_VERSION}

    def check_instruction(self, instruction: str) -> None:
        """Every instruction is readable."""

    def act(self, requests: list[ActRequest]) -> list[ActResult]:
        """All-zero chunks."""
        shape_KA = (self.chunk_steps, self.action_dim)
        return [
            ActResult(
                np.zeros(shape_KA, np.float32),
                np.zeros(shape_KA, np.int32),
                np.zeros(shape_KA, np.float32),
            )
            for _ in requests
        ]

    def normalise(self, actions_KA: np.ndarray) -> np.ndarray:
        """Its units are normalised ones."""
        return actions_KA

    def stray_state(self, proprio_P: np.ndarray) -> str:
        """It learned on nothing."""
        return ""

    def strays(self, choices_KA: np.ndarray) -> bool:
        """Zeros never do."""
        return False

    def stage(self, version: str, folder: Path) -> Staged:
        """Nothing to read."""
        return Staged(version, None)

    def install(self, staged: Staged) -> None:
        """Raises NoFreeSlot like a policy with weights."""
        if len(self._resident) > self._adapter_slots:
            raise NoFreeSlot(f"{self._adapter_slots} adapter slots, all in use")
        self._resident.add(staged.version)

    def drop(self, version: str) -> None:
        """Forgets a version."""
        self._resident.discard(version)

    def resident(self) -> set[str]:
        """The base and what was installed."""
        return set(self._resident)
