"""How far apart the ends of two chunks are that were executed one after the other."""

from __future__ import annotations

from collections import deque

import numpy as np

from agent.wire.messages import Executed


class SeamMeter:
    """Of one episode. Clients tell what became of actions later than they were sent, but in the
    order in which they were sent.
    """

    def __init__(self) -> None:
        self._open: deque[np.ndarray] = deque()  # chunks of which not all is told
        self._told = np.zeros(0, np.uint8)  # of them
        self._last_A: np.ndarray | None = None

    def sent(self, actions_KA: np.ndarray) -> None:
        """A chunk went out; f32 or f64[K, A], normalised."""
        self._open.append(actions_KA)

    def told(self, executed: np.ndarray) -> list[float]:
        """u8[n] codes that came; the L2 distance at every seam of which both sides are known.

        A chunk of which nothing was executed has no seam: the chunks around it meet.
        """
        self._told = np.concatenate([self._told, executed])
        jumps = []
        while self._open and len(self._told) >= len(self._open[0]):
            actions_KA = self._open.popleft()
            codes_K, self._told = np.split(self._told, [len(actions_KA)])
            played = np.flatnonzero(codes_K != Executed.NOT_RUN)
            if not len(played):
                continue
            if self._last_A is not None:
                jumps.append(float(np.linalg.norm(actions_KA[played[0]] - self._last_A)))
            self._last_A = actions_KA[played[-1]]
        return jumps
