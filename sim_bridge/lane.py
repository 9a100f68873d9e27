"""One body and the episode it is in: what to ask the server next, and what to do with answers.

A lane is a state machine without sockets. Each move returns the message to ask next; the worker
sends it and brings the answer back.

    IDLE -take-> STARTING -started-> READY -advance-> WAITING -receive_chunk-> READY ...
    READY -advance (over)-> ENDING -sealed-> IDLE         any -release-> IDLE
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from agent.process.clock import unix_s
from agent.wire.messages import (
    Act,
    Chunk,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    EpisodeStarted,
    Outcome,
    SlotLease,
)
from sim_bridge.log import EndLine
from sim_bridge.player import BodyFailed, Player
from sim_bridge.robot import BridgeError


class Phase(Enum):
    """What a lane is doing; only READY needs the body's time."""

    IDLE = auto()
    STARTING = auto()  # EpisodeStart asked
    READY = auto()  # the body can be reset or a chunk played
    WAITING = auto()  # Act asked
    ENDING = auto()  # EpisodeEnd asked


class BadReply(BridgeError):
    """The server's answer is not what the contract allows; its episode cannot go on."""


@dataclass(slots=True)
class Episode:
    """The episode a lane is in. executed_K: codes of the last chunk received; [] before one."""

    lease: SlotLease
    cameras: tuple[str, ...]
    start: EpisodeStart
    episode_id: str = ""
    version: str = ""
    versions: list[str] = field(default_factory=list)  # distinct, as the chunks named them
    step_index: int = 0  # of the Act asked next or waited for
    steps: int = 0
    first_success: int = 0  # step after which the predicate held first; 0: it never did
    actions_KA: np.ndarray | None = None
    executed_K: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))


class Lane:
    """One body slot of the worker."""

    def __init__(self, player: Player, client_id: str, instance_id: str) -> None:
        self.player = player
        self.phase = Phase.IDLE
        self.free_at_s = 0.0  # [worker's clock] no new lease before
        self.answered_at_s = 0.0  # [worker's clock] when its last answer came
        self._client_id, self._instance_id = client_id, instance_id
        self._episode: Episode | None = None

    @property
    def slot_id(self) -> str:
        """The slot it holds; "" when idle."""
        return self._episode.lease.slot_id if self._episode else ""

    def take(self, lease: SlotLease, cameras: tuple[str, ...]) -> EpisodeStart:
        """Starts the episode of a leased slot; `cameras` are those that the policy looks at."""
        start_key = uuid.uuid4().hex
        start = EpisodeStart(
            self._client_id, start_key, slot_id=lease.slot_id, instance_id=self._instance_id
        )
        self._episode = Episode(lease, cameras, start)
        self.phase = Phase.STARTING
        return start

    @property
    def start(self) -> EpisodeStart:
        """How its episode was started; asked again, it is the same episode."""
        return self._open().start

    def started(self, reply: EpisodeStarted) -> None:
        """The server minted the episode; the body is to be reset. Raises BadReply."""
        episode = self._open()
        episode.episode_id = reply.episode_id
        episode.version = reply.version
        self.phase = Phase.READY
        if episode.lease.version != reply.version:
            leased = episode.lease.version
            raise BadReply(f"start: leased for adapter {leased}, started with {reply.version}")

    def receive_chunk(self, chunk: object, shape_KA: tuple[int, int]) -> None:
        """Takes the answer to the last Act; `shape_KA` is the contract's. Raises BadReply."""
        episode = self._open()
        episode.executed_K = np.zeros(shape_KA[0], np.uint8)  # answered, whatever is wrong with it
        if not isinstance(chunk, Chunk):
            raise BadReply(f"expected a chunk, got {chunk}")
        if chunk.actions.dtype != np.float32 or chunk.actions.shape != shape_KA:
            got = f"{chunk.actions.dtype}{list(chunk.actions.shape)}"
            raise BadReply(f"chunk: expected float32{list(shape_KA)}, got {got}")
        if not np.isfinite(chunk.actions).all():
            raise BadReply(f"chunk {chunk.step_index}: not all actions are finite")
        if (chunk.episode_id, chunk.step_index) != (episode.episode_id, episode.step_index):
            raise BadReply(
                f"chunk: expected {episode.episode_id}/{episode.step_index}, "
                f"got {chunk.episode_id}/{chunk.step_index}"
            )
        if chunk.version not in episode.versions:
            episode.versions.append(chunk.version)
        if chunk.version != episode.version:
            raise BadReply(f"chunk: pinned to adapter {episode.version}, got {chunk.version}")
        episode.actions_KA = chunk.actions
        episode.step_index += 1
        self.phase = Phase.READY

    def advance(self) -> Act | EpisodeEnd:
        """Resets the body or plays the chunk at hand; asks for the next chunk or ends."""
        episode = self._open()
        try:
            if episode.actions_KA is None:
                self.player.reset(episode.lease)
                return self._observe()
            budget_steps = episode.lease.horizon_steps - episode.steps
            played = self.player.play(episode.actions_KA, budget_steps)
            episode.executed_K = played.executed_K
            if played.first_success and not episode.first_success:
                episode.first_success = episode.steps + played.first_success
            episode.steps += played.steps
            is_last = episode.steps >= episode.lease.horizon_steps
            if not played.over and not is_last:
                return self._observe()
            if played.success:
                return self._end(Outcome.SUCCESS, "")
            once = f"success once, at step {episode.first_success}" if episode.first_success else ""
            if played.over:
                return self._end(Outcome.FAILURE, once or "the body ended the episode")
            return self._end(Outcome.TIMEOUT, once)
        except BodyFailed as error:
            return self.abort(str(error))

    def abort(self, reason: str) -> EpisodeEnd:
        """Ends the open episode as aborted; none of the last chunk's actions count as executed."""
        episode = self._open()
        episode.executed_K = np.zeros_like(episode.executed_K)
        return self._end(Outcome.ABORTED, reason)

    def sealed(self, reply: EpisodeSealed) -> EndLine:
        """The end is answered: its line for the log. Raises BadReply."""
        episode = self._open()
        if reply.episode_id != episode.episode_id:
            raise BadReply(f"sealed: expected {episode.episode_id}, got {reply.episode_id}")
        return EndLine(
            episode_id=episode.episode_id,
            slot_id=episode.lease.slot_id,
            task=episode.lease.task,
            split=episode.lease.split,
            init_state=episode.lease.init_state,
            phase=episode.lease.phase,
            version=episode.version,
            versions=list(episode.versions),
            outcome=reply.outcome,
            steps=episode.steps,
            counted=reply.counted,
            unix_s=unix_s(),
        )

    def release(self) -> None:
        """Idle again, without a word to the server; the body stays for the next episode."""
        self.phase = Phase.IDLE
        self._episode = None

    def _observe(self) -> Act:
        at, seen = self._open(), self.player.observe()
        self.phase = Phase.WAITING
        images = {camera: seen.images[camera] for camera in at.cameras}
        return Act(at.episode_id, at.step_index, images, seen.proprio, at.executed_K)

    def _end(self, outcome: Outcome, reason: str) -> EpisodeEnd:
        at = self._open()
        self.phase = Phase.ENDING
        return EpisodeEnd(at.episode_id, outcome, at.steps, at.executed_K, reason)

    def _open(self) -> Episode:
        if self._episode is None:
            raise BridgeError(f"lane is {self.phase.name} without an episode")
        return self._episode
