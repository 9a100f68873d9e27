"""Every message of the wire protocol, as frozen dataclasses; the codec turns them into frames.

Robots and simulators speak the *client* messages to one ROUTER, the learner and operators the
*operator* messages to a second one. Each request has exactly one reply: the type named in its
docstring, or a `Fault`. Arrays are numpy arrays and travel as raw frames; everything else is
msgpack. Axis legend: K actions of a chunk, A action dimensions, P proprio dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np

from agent.wire.schema import Text, later

PROTOCOL_VERSION = 3
# What the operators' side of it has gained since; each says its own in its hello (0: nothing).
# 1: episodes in parts, refused orders beside episodes, slots held, episodes rejected.
LEARNER_REVISION = 1
BASE_VERSION = "base"  # version 0: the model without an adapter


class Outcome(StrEnum):
    """How an episode ended; only ABORTED (infrastructure) is never trained or counted."""

    SUCCESS = "success"
    FAILURE = "failure"
    TIMEOUT = "timeout"
    INTERVENED = "intervened"
    ABORTED = "aborted"


class Phase(StrEnum):
    """Why an episode is collected; SERVE is a robot's own task without an order."""

    TRAIN = "train"
    EVAL = "eval"
    SERVE = "serve"


class Executed(IntEnum):
    """Codes of one action's fate, u8[K] beside each observation and the episode's end."""

    NOT_RUN = 0  # the episode ended or the chunk was pre-empted: masked
    RUN = 1  # executed as sent: trained
    LIMITED = 2  # executed after a clamp or rate limit: part of the dynamics, trained
    REPLACED = 3  # blended, held, or taken over by a human: masked


# ---- client messages -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a client. Reply: Welcome.

    instance_id: random, new at every start of the client's process. A new instance gives back what
    the former one of that client held, and messages of the former one are refused (stale_epoch).
    "": a client that is never replaced.
    """

    client_id: str
    client_name: Text
    protocol_version: int = PROTOCOL_VERSION
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The contract: what the server wants to see and what it answers with.

    max_message_bytes: of a client's message with all its frames; above that it is not read.
    """

    protocol_version: int
    server_id: str  # new at every server start: a client that sees it change restarts its episodes
    policy: str
    active_version: str
    chunk_steps: int  # K
    action_dim: int  # A
    proprio_dim: int  # P
    images: dict[str, list[int]]  # camera name -> [height, width, 3], uint8, any size is accepted
    max_message_bytes: int = later(32 << 20)


@dataclass(frozen=True, slots=True)
class Assign:
    """Asks for up to `count` slots to run. Reply: Assignments."""

    client_id: str
    suite: str
    count: int = 1
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class SlotLease:
    """One slot of an order, leased to a client until `lease_s` after the last sign of life."""

    slot_id: str
    suite: str
    task: str  # registered slug
    instruction: str
    split: str  # "train" or "eval": which init states
    init_state: int
    horizon_steps: int
    phase: str
    version: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class Assignments:
    """Leases, in slot order; empty means nothing to do: ask again after `retry_after_s`."""

    leases: list[SlotLease]
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EpisodeStart:
    """Starts the episode of a leased slot, or (slot_id "") of a robot's own registered task.

    `start_key` is a client-made nonce: a repeated start returns the same episode.
    Reply: EpisodeStarted.
    """

    client_id: str
    start_key: str
    slot_id: str = ""
    task: str = ""
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class EpisodeStarted:
    """The server-minted identity of the episode and the adapter version it is pinned to.

    recorded: False while the server's disk takes nothing. The episode is acted in and not kept: it
    will end as aborted, and is neither trained nor counted.
    """

    episode_id: str
    version: str
    recorded: bool = later(True)


@dataclass(frozen=True, slots=True)
class Act:
    """One observation; keyed (episode_id, step_index), a repeat gets the stored reply.

    images: camera -> u8[H, W, 3] RGB, upright as the policy expects it. proprio: f32[P].
    executed: u8[n] `Executed` codes of the actions whose fate has become known since the message
    before, in the order in which they were sent: all K of the previous chunk, or, where that is
    still being played, those that it and the chunks before have left open. Reply: Chunk.
    """

    episode_id: str
    step_index: int
    images: dict[str, np.ndarray]
    proprio: np.ndarray
    executed: np.ndarray


@dataclass(frozen=True, slots=True)
class Chunk:
    """actions: f32[K, A] in the robot's units; `version` is the adapter that produced them.

    recorded: False once the episode is not kept any more (see EpisodeStarted).
    """

    episode_id: str
    step_index: int
    actions: np.ndarray
    version: str
    recorded: bool = later(True)


@dataclass(frozen=True, slots=True)
class EpisodeEnd:
    """Ends an episode; answered only when its seal is durable. Reply: EpisodeSealed.

    steps: control steps taken; executed: u8[n] codes of all actions not told of before, usually
    the K of the last chunk.
    """

    episode_id: str
    outcome: str
    steps: int
    executed: np.ndarray
    reason: Text = ""


@dataclass(frozen=True, slots=True)
class EpisodeSealed:
    """`counted` is False for aborted and surplus episodes.

    recorded: False for an episode that could not be kept; its outcome is then aborted, whatever the
    client has said.
    """

    episode_id: str
    outcome: str
    counted: bool
    recorded: bool = later(True)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Bridge-side figures that the agent exports (names of `agent.wire.telemetry`). Reply: Ok."""

    client_id: str
    gauges: dict[str, float]
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class Ok:
    """Done, nothing to say."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A typed refusal. `code` is one of agent.wire.errors' codes; nothing else was changed."""

    code: str
    message: Text


# ---- operator messages -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LearnerHello:
    """Opens a learner epoch; older epochs are refused from then on. Reply: LearnerWelcome.

    epoch: integer that the learner increments durably at each of its starts.
    revision: the LEARNER_REVISION that the learner speaks. Replies to one of 0 have no later field.
    """

    learner_id: str
    epoch: int
    protocol_version: int = PROTOCOL_VERSION
    revision: int = later(0)


@dataclass(frozen=True, slots=True)
class LearnerWelcome:
    """base_sha256: content hash of the base model the server serves.

    has_activated: whether a version was ever activated here; False says nothing at revision 0.
    """

    protocol_version: int
    server_id: str
    policy: str
    base_sha256: str
    active_version: str
    revision: int = later(0)
    has_activated: bool = later(False)


@dataclass(frozen=True, slots=True)
class Order:
    """`slots` episodes of one task from one init state, pinned to one version.

    Sampling noise of slot k is a pure function of (run_seed, f"{noise_key}#{k}", step index);
    temperature 0 is greedy. `order_id` is the idempotency key; slot ids are f"{order_id}#{k}".
    row, mode: the cell of the success matrix that it measures; -1 and "" for none.
    """

    order_id: str
    suite: str
    task: str
    instruction: str
    split: str
    init_state: int
    horizon_steps: int
    slots: int
    phase: str
    version: str
    temperature: float
    run_seed: int
    noise_key: str
    row: int = -1
    mode: str = ""


@dataclass(frozen=True, slots=True)
class PostOrders:
    """Idempotent by order id (same id with other content is a Fault). Reply: Ok when durable.

    held: {slot id: episode id} of slots of these orders that need no episode, because the learner
    holds one: a server that has lost its ledger does not know.
    """

    epoch: int
    orders: list[Order]
    held: dict[str, str] = later(factory=dict)


@dataclass(frozen=True, slots=True)
class FetchEpisodes:
    """Long poll for sealed, unacknowledged episodes not yet sent in this epoch.

    Answers as soon as there is one, or empty after `wait_s`. Reply: Episodes.
    """

    epoch: int
    limit: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class SealedEpisode:
    """One sealed episode: its identity, its ledger row, and the bytes of its MCAP file u8[N].

    size_bytes: 0, or that of a file too large for one message, to be fetched by FetchPart; the
    payload is empty then.
    """

    episode_id: str
    sha256: str
    order_id: str  # "" for a robot's own task
    slot_id: str
    suite: str
    task: str
    split: str
    init_state: int
    phase: str
    version: str
    outcome: str
    steps: int
    counted: bool  # False: surplus or aborted
    payload: np.ndarray = field(repr=False)
    size_bytes: int = later(0)


@dataclass(frozen=True, slots=True)
class Episodes:
    """Episodes in seal order.

    refused: {order id: why} of orders that cannot be carried out; told once in an epoch.
    """

    items: list[SealedEpisode]
    refused: dict[str, Text] = later(factory=dict)


@dataclass(frozen=True, slots=True)
class FetchPart:
    """`length` bytes of a sealed episode's file from `offset` on, fewer at its end.

    Reply: EpisodePart; unknown_episode if it is not sealed here, or was found damaged.
    """

    epoch: int
    episode_id: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class EpisodePart:
    """data: u8[n]. The whole has the size and the SHA-256 that its SealedEpisode stated."""

    episode_id: str
    offset: int
    data: np.ndarray = field(repr=False)


@dataclass(frozen=True, slots=True)
class RejectEpisodes:
    """The learner cannot use these any more: {episode id: why}. Idempotent. Reply: Ok when durable.

    They no longer count, and their slots are leased again with the same init state and noise.
    """

    epoch: int
    episodes: dict[str, Text]


@dataclass(frozen=True, slots=True)
class AckEpisodes:
    """The learner holds these durably: {episode_id: sha256}. Idempotent. Reply: Ok."""

    epoch: int
    episodes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Activate:
    """Serve `version` to new unpinned episodes; loads it from the store if needed.

    Reply: Activated. Idempotent. epoch 0 means an operator, not the learner.
    """

    epoch: int
    version: str


@dataclass(frozen=True, slots=True)
class Rollback:
    """Go back to the version active before the present one. Reply: Activated.

    again: whether to go further back from a version that a rollback has made active; without, that
    is refused with conflict, so that a command given twice goes back once.
    """

    again: bool = later(True)


@dataclass(frozen=True, slots=True)
class Activated:
    """hold_s: how long the inference loop was held for the copy (0 if already resident)."""

    version: str
    previous: str
    hold_s: float


@dataclass(frozen=True, slots=True)
class Status:
    """Reply: ServerStatus."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What `perennial adapters` and the live progress show."""

    server_id: str
    policy: str
    active_version: str
    resident_versions: list[str]
    open_episodes: int
    open_slots: int
    episodes_unacked: int
    requests: int
