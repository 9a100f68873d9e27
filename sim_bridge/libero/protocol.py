"""Where an episode starts under each named protocol, and how the scene comes to rest before it.

A published init state drops the objects from 7 to 16 cm above their places, so every protocol lets
some control steps pass first. Which states train and which evaluate, the horizons and the
temperature are the suite's settings (`configs/suite/protocol`); a rate is only as good as the name
of its protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.wire.errors import ConfigError
from sim_bridge.libero.env import ACTION_DIM, LiberoEnv
from sim_bridge.robot import require_init_state

SETTLE_STEPS = 10
OPEN_HAND = np.array([0.0] * (ACTION_DIM - 1) + [-1.0])
DEMONSTRATION = "demo"  # the split whose init state k is a fresh scene of seed k
LAST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Protocol:
    """states: split -> published init states; settle_A: f64[A], repeated `SETTLE_STEPS` times.

    reseeded: whether it seeds before every reset, so that all episodes share their fixtures' poses
    (but in tasks with drawers or knobs to turn); else once a task, and fixtures move.
    """

    name: str
    settle_A: np.ndarray
    states: dict[str, range]
    reseeded: bool = False

    def start(self, env: LiberoEnv, split: str, init_state: int) -> None:
        """Puts `env` into that start state. Raises BridgeError when the split has no such state."""
        counts = {name: len(states) for name, states in self.states.items()}
        require_init_state(split, init_state, {**counts, DEMONSTRATION: LAST_SEED})
        if split == DEMONSTRATION:
            env.reset_fresh(init_state)
        else:
            env.reset_published(self.states[split][init_state], self.reseeded)
        for _ in range(SETTLE_STEPS):
            env.settle(self.settle_A)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # OpenVLA's and OpenVLA-OFT's evaluation: nothing is trained on these states.
        Protocol("openvla", OPEN_HAND, {"eval": range(50)}),
        # arXiv 2603.11653: training and evaluation share the states.
        Protocol("vlacrl", np.zeros(ACTION_DIM), {"train": range(50), "eval": range(50)}, True),
        Protocol("disjoint", OPEN_HAND, {"train": range(30), "eval": range(30, 50)}),
    )
}


def protocol_by_name(name: str) -> Protocol:
    """Raises ConfigError for an unknown name, naming the known ones."""
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got '{name}'")
    return PROTOCOLS[name]
