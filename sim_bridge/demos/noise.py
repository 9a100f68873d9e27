"""Disturbances of the demonstrator, so that demonstrations show how to recover."""

from __future__ import annotations

import numpy as np


class ActionNoise:
    """DART noise (Laskey et al., 2017) of one episode: Gaussian at a level of its own, bursts of
    one random action, gripper flips. A share of the episodes stays clean.
    """

    MAX_LEVEL, CLEAN_SHARE = 0.6, 0.2
    BURST_RATE, FLIP_RATE = 0.02, 0.015  # per step

    def __init__(self, rng: np.random.Generator, strength: float = 1.0) -> None:
        """strength: of level and bursts; what a unit action moves differs between robots."""
        self.rng, self.strength = rng, strength
        clean = rng.random() < self.CLEAN_SHARE
        self.level = 0.0 if clean else rng.uniform(0.0, self.MAX_LEVEL * strength)
        self.disturbed = not clean
        self.burst_steps = self.flip_steps = 0
        self.burst_A = np.zeros(6)

    def apply(self, action_A: np.ndarray) -> np.ndarray:
        """The action to execute, f64[7] in [-1, 1], in place of the expert's `action_A`."""
        rng = self.rng
        executed_A = action_A + self.level * rng.normal(size=7)
        if self.disturbed and self.burst_steps == 0 and rng.random() < self.BURST_RATE:
            self.burst_steps = int(rng.integers(3, 9))
            self.burst_A = rng.uniform(-self.strength, self.strength, 6)
        if self.disturbed and self.flip_steps == 0 and rng.random() < self.FLIP_RATE:
            self.flip_steps = int(rng.integers(2, 7))
        if self.burst_steps:
            self.burst_steps -= 1
            executed_A[:6] = self.burst_A
        if self.flip_steps:
            self.flip_steps -= 1
            executed_A[6] = -action_A[6]
        return np.clip(executed_A, -1.0, 1.0)
