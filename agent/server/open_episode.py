"""What the server holds of one open episode."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from agent.episode import ChunkRecord, EpisodeMeta
from agent.metrics import AgentMetrics
from agent.policy import ActResult, Policy, slot_hash
from agent.process.clock import unix_s
from agent.server.exchange import Exchange
from agent.server.permissions import check_episode_owner
from agent.server.seams import SeamMeter
from agent.server.state import Task
from agent.wire.errors import WireError
from agent.wire.messages import Act, Chunk, Executed, Order, Phase

WAITERS_MAX = 8  # repeats of one request that wait together


@dataclass(frozen=True, slots=True)
class EpisodeRules:
    """Limits: silence after which an episode is given up, open ones at most, eval pixels kept.

    max_chunk_bytes, max_episode_bytes: of what is recorded of one observation, and of all.
    """

    lease_s: float
    max_open: int
    keep_eval_images_per_task: int
    max_chunk_bytes: int
    max_episode_bytes: int


@dataclass(slots=True)
class PendingAct:
    """The observation being answered, and everybody who asked for it."""

    act: Act
    waiters: list[Exchange]

    def is_wanted(self, now_s: float) -> bool:
        """Whether somebody still waits."""
        return any(not waiter.is_expired(now_s) for waiter in self.waiters)


@dataclass(slots=True)
class OpenEpisode:
    """An episode between its start and its durable seal.

    owner: the client whose key opened it. party: whose limits it counts against.
    recorded: chunks in the journal. left_out: why from some
    chunk on pictures, or with `is_cut` everything, were not recorded. client_s: the time that its
    client took between answers. executed: u8 codes, as they came, of the actions whose fate is
    known. replies: those of the last two steps. last_seen_s, kept_s: the last message about it, and
    the last sign of life that kept it.
    """

    meta: EpisodeMeta
    start_key: str
    keep_images: bool
    last_seen_s: float
    owner: str
    party: str
    noise_slot: int = field(init=False)
    kept_s: float = 0.0
    chunks: int = 0  # answered observations
    recorded: int = 0
    recorded_bytes: int = 0
    left_out: str = ""
    is_cut: bool = False
    client_s: float = 0.0
    executed: list[np.ndarray] = field(default_factory=list)
    replies: dict[int, Chunk] = field(default_factory=dict)
    seams: SeamMeter = field(default_factory=SeamMeter)
    pending: PendingAct | None = None
    is_recorded: bool = True  # False: acted in, and not kept
    end_waiters: list[Exchange] | None = None  # set once the seal is under way

    def __post_init__(self) -> None:
        self.kept_s = self.last_seen_s
        self.noise_slot = slot_hash(self.meta.noise_key, self.meta.slot_index)

    def owned_by(self, sender: str) -> OpenEpisode:
        """Itself. Raises WireError("forbidden") for anybody but the client that opened it."""
        check_episode_owner(self.meta.episode_id, self.owner, sender)
        return self

    def require_known(self, executed: np.ndarray, chunk_steps: int) -> None:
        """Raises WireError("bad_array") if an observation tells of more actions than were sent."""
        told, sent = self._told() + len(executed), self.chunks * chunk_steps
        if told > sent:
            raise WireError(
                "bad_array",
                f"executed: {len(executed)} codes more make {told}, but {self.chunks} chunks of "
                f"{chunk_steps} actions were sent",
            )

    def require_all(self, executed: np.ndarray, chunk_steps: int) -> None:
        """Raises WireError("bad_array") unless these are the codes of all actions not yet told."""
        wanted = self.chunks * chunk_steps - self._told()
        if len(executed) != wanted:
            raise WireError(
                "bad_array",
                f"executed: expected uint8[{wanted}], the fate of every action not yet told of, "
                f"got {len(executed)}",
            )

    def record(self, act: Act, result: ActResult) -> ChunkRecord:
        """What is written of an observation and its answer."""
        return ChunkRecord(
            step_index=act.step_index,
            images=act.images if self.keep_images else {},
            proprio=act.proprio,
            choices_KA=result.choices_KA,
            logprobs_KA=result.logprobs_KA,
            actions_KA=result.actions_KA,
            version=self.meta.version,
        )

    def fit(self, chunk: ChunkRecord, rules: EpisodeRules) -> tuple[ChunkRecord | None, str]:
        """What may be recorded of a chunk, and why not all of it: without pictures, or nothing."""
        if self.is_cut:
            return None, self.left_out
        why = self._excess(chunk, rules)
        if why and chunk.images:
            chunk = replace(chunk, images={})
            if not self._excess(chunk, rules):
                return chunk, why
        return (None, why) if why else (chunk, self.left_out)

    def keep(self, chunk: ChunkRecord | None, left_out: str) -> None:
        """Takes what `fit` returned once the journal has it."""
        if chunk is None:
            self.is_cut = True
        else:
            self.recorded += 1
            self.recorded_bytes += chunk.size_bytes
        if left_out:
            self.keep_images, self.left_out = False, left_out

    @property
    def is_too_large(self) -> bool:
        """Whether what was recorded is less than training, or any reading, of it needs."""
        return self.is_cut or bool(self.left_out and self.meta.phase == Phase.TRAIN)

    def remember(self, chunk: Chunk, executed: np.ndarray) -> None:
        """Takes an answer; `executed` is what its observation said of actions before."""
        self.executed.append(executed.copy())
        self.chunks += 1
        self.replies[chunk.step_index] = chunk
        self.replies.pop(chunk.step_index - 2, None)

    def executed_TK(self, last: np.ndarray, chunk_steps: int) -> np.ndarray:
        """u8 codes of recorded chunks; `last` are those not told before, or fewer: not run."""
        codes = np.zeros(self.chunks * chunk_steps, np.uint8)
        told = np.concatenate([*self.executed, last])
        codes[: len(told)] = told
        return codes.reshape(self.chunks, chunk_steps)[: self.recorded]

    def _excess(self, chunk: ChunkRecord, rules: EpisodeRules) -> str:
        if chunk.size_bytes > rules.max_chunk_bytes:
            return (
                f"chunk {chunk.step_index} has {chunk.size_bytes} bytes, max_chunk_bytes is "
                f"{rules.max_chunk_bytes}: send smaller pictures or raise it"
            )
        if self.recorded_bytes + chunk.size_bytes > rules.max_episode_bytes:
            return (
                f"with chunk {chunk.step_index} it has {self.recorded_bytes + chunk.size_bytes} "
                f"bytes, max_episode_bytes is {rules.max_episode_bytes}: send smaller pictures, "
                "end it sooner or raise it"
            )
        return ""

    def _told(self) -> int:
        return sum(len(codes) for codes in self.executed)


def own_task_order(slug: str, task: Task, version: str) -> Order:
    """A robot's own task in the form of an order: greedy, one slot, no id."""
    return Order(
        order_id="",
        suite=task.suite,
        task=slug,
        instruction=task.instruction,
        split="",
        init_state=0,
        horizon_steps=0,
        slots=1,
        phase=Phase.SERVE,
        version=version,
        temperature=0.0,
        run_seed=0,
        noise_key="",
    )


def make_meta(
    order: Order, slot_index: int, episode_id: str, client_id: str, policy: Policy
) -> EpisodeMeta:
    """The identity of an episode that starts now."""
    return EpisodeMeta(
        episode_id=episode_id,
        order_id=order.order_id,
        slot_id=f"{order.order_id}#{slot_index}" if order.order_id else "",
        suite=order.suite,
        task=order.task,
        instruction=order.instruction,
        split=order.split,
        init_state=order.init_state,
        phase=order.phase,
        version=order.version,
        horizon_steps=order.horizon_steps,
        temperature=order.temperature,
        run_seed=order.run_seed,
        noise_key=order.noise_key,
        slot_index=slot_index,
        policy=policy.name,
        base_sha256=policy.base_sha256,
        client_id=client_id,
        started_unix_s=unix_s(),
    )


def observation_bytes(act: Act) -> int:
    """What an observation holds in memory."""
    return act.proprio.nbytes + sum(image.nbytes for image in act.images.values())


def count_actions(metrics: AgentMetrics, episode: OpenEpisode, executed: np.ndarray) -> None:
    """Counts what a client says became of an episode's actions, and measures their seams."""
    for code, count in enumerate(np.bincount(executed).tolist()):
        if count:
            metrics.actions_total.labels(Executed(code).name.lower()).inc(count)
    for jump in episode.seams.told(executed):
        metrics.chunk_seam_jump.labels(episode.meta.phase).observe(jump)


def join(waiters: list[Exchange], exchange: Exchange, what: str) -> None:
    """Adds a repeat to those that wait; beyond WAITERS_MAX the oldest one waits no more.

    A client that came back over another connection is the newest.
    """
    if len(waiters) >= WAITERS_MAX:
        waiters.pop(0).fail("overloaded", f"{what} was asked again {WAITERS_MAX} times")
    waiters.append(exchange)
