"""What a robot knows of the episode that it is in."""

from __future__ import annotations

import numpy as np

from agent.wire.messages import Chunk, EpisodeStarted, Fault
from sim_bridge.robot import BridgeError
from sim_bridge.robots.playback import Playback
from sim_bridge.robots.session import describe
from sim_bridge.worker import GONE_CODES


class EpisodeLost(BridgeError):
    """It did not begin, or the server has it no more, or refuses to go on with it."""


class RunningEpisode:
    """Its chunks, and when what happened.

    fresh_s: when an action was executed last; ticked_s: when the last tick began. seen_s: when the
    last observation was taken; unused_s: the same for a chunk that was received and none of whose
    actions was executed. step_index: of the observation asked next or waited for.
    """

    def __init__(self, started: EpisodeStarted, playback: Playback, now_s: float) -> None:
        self.id = started.episode_id
        self.playback = playback
        self.fresh_s = self.ticked_s = now_s
        self.seen_s = now_s
        self.unused_s: float | None = None
        self.held = False
        self.tick = -1
        self.steps = self.step_index = 0
        self.versions: list[str] = []

    def read_chunk(self, reply: object, shape_KA: tuple[int, int]) -> np.ndarray:
        """The actions, f32[K, A], that answer the last observation; `shape_KA` is the contract's.

        Raises EpisodeLost, and BridgeError for an answer that is none.
        """
        if isinstance(reply, Fault) and reply.code in GONE_CODES:
            raise EpisodeLost(f"episode {self.id}: {describe(reply)}")
        if not isinstance(reply, Chunk):
            raise BridgeError(f"step {self.step_index}: {describe(reply)}")
        is_usable = reply.actions.shape == shape_KA and np.isfinite(reply.actions).all()
        if reply.step_index != self.step_index or not is_usable:
            raise BridgeError(
                f"step {self.step_index}: expected {shape_KA} finite numbers for it, got "
                f"{reply.actions.shape} for step {reply.step_index}"
            )
        self.step_index += 1
        if reply.version not in self.versions:
            self.versions.append(reply.version)
        return reply.actions
