"""Which action of which chunk a robot executes at a tick: chunks that overlap, without a clock.

A chunk's first action is meant for the moment its observation was taken. With `lead_ticks` 0 the
robot asks when it has nothing left and stands still until the answer is there, so that moment has
not passed: it plays the chunk from its first action. Otherwise it asks `lead_ticks` before the end
and goes on; when the answer comes, the world has moved on by the d actions that were due meanwhile:
the first d of the new chunk are skipped (Zhao et al., 2023, and Black et al., 2025, on real-time
execution of chunks). Ticks for which nothing was left do not count: the robot stood still. But the
world may not have: an answer to an observation older than `stale_ticks` is refused as stale.

Nothing is lost of what became of each action: `Executed` codes come out chunk by chunk, in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from agent.wire.messages import Executed
from sim_bridge.robot import BridgeError


@dataclass(slots=True, eq=False)
class _Chunk:
    """actions_KA: f32[K, A]; start_tick: of its first action; codes_K: u8[K]."""

    actions_KA: np.ndarray
    start_tick: int
    codes_K: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.codes_K = np.full(len(self.actions_KA), Executed.NOT_RUN, np.uint8)

    @property
    def end_tick(self) -> int:
        """After its last action."""
        return self.start_tick + len(self.actions_KA)

    def at(self, tick: int) -> np.ndarray | None:
        """The action for a tick, f32[A]; None before its first and after its last."""
        index = tick - self.start_tick
        return self.actions_KA[index] if 0 <= index < len(self.actions_KA) else None


class Playback:
    """The chunks of one episode. Ticks are control steps, counted by whoever calls."""

    def __init__(
        self,
        chunk_steps: int,
        lead_ticks: int = 0,
        blend_ticks: int = 0,
        stale_ticks: float = math.inf,
    ) -> None:
        """lead_ticks: before the end of a chunk, at which the next one is asked for. blend_ticks:
        after a change of chunks, in which the action moves over from the old chunk's to the new.
        stale_ticks: the longest that an answer may take.

        Raises BridgeError for values that cannot work.
        """
        if not 0 <= lead_ticks < chunk_steps:
            raise BridgeError(
                f"lead_ticks: expected 0 to {chunk_steps - 1} with chunks of {chunk_steps} "
                f"actions, got {lead_ticks}"
            )
        if not 0 <= blend_ticks <= lead_ticks:
            raise BridgeError(
                f"blend_ticks: expected 0 to lead_ticks = {lead_ticks}, got {blend_ticks}: what "
                "is left of the old chunk is blended"
            )
        self.stale = 0  # chunks whose observation was too old
        self.delays_ticks: list[int] = []  # from observation to answer
        self.seam_jumps: list[float] = []  # largest change of an action at a change of chunks
        self._lead, self._blend, self._stale_ticks = lead_ticks, blend_ticks, stale_ticks
        self._chunks: list[_Chunk] = []  # whose codes nobody has taken
        self._current: _Chunk | None = None
        self._old: _Chunk | None = None
        self._changed_tick = 0
        self._asked_tick: int | None = None
        self._is_expired = False  # the observation that was asked with
        self._last_A: np.ndarray | None = None

    def wants_chunk(self, tick: int) -> bool:
        """Whether it is time to observe and ask."""
        return self._asked_tick is None and self.left(tick) <= self._lead

    def left(self, tick: int) -> int:
        """Actions of the present chunk from `tick` on."""
        return 0 if self._current is None else max(0, self._current.end_tick - tick)

    def ask(self, tick: int) -> None:
        """An observation was taken at `tick` and sent."""
        self._asked_tick, self._is_expired = tick, False

    def receive(self, tick: int, actions_KA: np.ndarray) -> bool:
        """The answer came before the action of `tick`; False if it is stale, and only told of."""
        assert self._asked_tick is not None, "an answer to nothing"
        delay = tick - self._asked_tick
        self.delays_ticks.append(delay)
        moved = min(delay, self.left(self._asked_tick))  # fewer than it has: lead_ticks at most
        chunk = _Chunk(actions_KA, tick - moved)
        self._chunks.append(chunk)
        self._asked_tick = None
        if delay > self._stale_ticks or self._is_expired:
            self.stale += 1
            return False
        self._old, self._current, self._changed_tick = self._current, chunk, tick
        return True

    def expire(self) -> None:
        """Time went by that no tick counts: what is left was meant for a world that is gone, and
        so is an answer that is still to come.
        """
        self._current = self._old = None
        self._is_expired = self._asked_tick is not None

    def action(self, tick: int) -> np.ndarray | None:
        """What to execute at `tick`, f32[A]; None: there is nothing, hold."""
        action_A = self._current.at(tick) if self._current else None
        if action_A is None:
            return None
        if self._last_A is not None and tick == self._changed_tick:
            self.seam_jumps.append(float(np.abs(action_A - self._last_A).max()))
        old_A = self._blended_with(tick)
        if old_A is not None:
            weight = (tick - self._changed_tick + 1) / (self._blend + 1)
            action_A = ((1.0 - weight) * old_A + weight * action_A).astype(np.float32)
        return action_A

    def played(self, tick: int, action_A: np.ndarray, limited: bool) -> None:
        """The action of `tick` was executed as `action_A`; limited: a limit had changed it."""
        chunk = self._current
        assert chunk is not None, "nothing to play"
        if self._blended_with(tick) is not None:
            code = Executed.REPLACED
        else:
            code = Executed.LIMITED if limited else Executed.RUN
        chunk.codes_K[tick - chunk.start_tick] = code
        self._last_A = action_A

    def take_settled(self, tick: int) -> np.ndarray:
        """u8[n]: codes of the chunks that are over at `tick`, which were not taken before."""
        # One behind the present chunk is over if it was stale, but codes come out in order.
        playing = self.left(tick) and self._current in self._chunks and self._current
        count = self._chunks.index(playing) if playing else len(self._chunks)
        over, self._chunks = self._chunks[:count], self._chunks[count:]
        return _codes(over)

    def take_all(self) -> np.ndarray:
        """u8[n]: the codes of every chunk that were not taken before; the episode is over.

        None while an observation is unanswered: whether the server has the codes that went with
        it, which come before these, nobody knows.
        """
        left, self._chunks = self._chunks, []
        if self._asked_tick is not None:
            return _codes([])
        return _codes(left)

    def _blended_with(self, tick: int) -> np.ndarray | None:
        """The old chunk's action for `tick` while it is blended in."""
        if self._old is None or tick - self._changed_tick >= self._blend:
            return None
        return self._old.at(tick)


def _codes(chunks: list[_Chunk]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.uint8), *(chunk.codes_K for chunk in chunks)])
