"""A server for the worker's tests: real ROUTER and codec, a scripted policy, faults on demand."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from patience import HANG_S

from agent.wire.codec import decode
from agent.wire.messages import (
    PROTOCOL_VERSION,
    Act,
    Assign,
    Assignments,
    Chunk,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    EpisodeStarted,
    Fault,
    Hello,
    Ok,
    SlotLease,
    Telemetry,
    Welcome,
)
from agent.wire.sockets import Poller, RouterSocket
from agent.wire.wakeup import Wakeup
from sim_bridge.toy import DIRECTIONS

CHUNK_STEPS = 4
CAMERAS = {"agentview": [16, 16, 3], "wrist": [16, 16, 3]}


def make_lease(k: int, task: str = "move_left", horizon_steps: int = 8) -> SlotLease:
    return SlotLease(
        slot_id=f"order/0#{k}",
        suite="toy",
        task=task,
        instruction=task.replace("_", " "),
        split="train",
        init_state=k % 50,
        horizon_steps=horizon_steps,
        phase="train",
        version="base",
        lease_s=30.0,
    )


@dataclass
class Served:
    """What the server knows of one episode."""

    lease: SlotLease
    chunks: dict[int, Chunk] = field(default_factory=dict)
    executed: list[np.ndarray] = field(default_factory=list)  # as told by acts and the end
    end: EpisodeEnd | None = None


def drive(lease: SlotLease, step_index: int) -> np.ndarray:
    """Actions f32[K, 7] that solve a toy task as fast as its body can."""
    actions_KA = np.zeros((CHUNK_STEPS, 7), np.float32)
    actions_KA[:, :2] = DIRECTIONS[lease.task]
    return actions_KA


class ScriptedServer:
    """Serves `leases` once each in its own thread.

    policy: (lease, step_index) -> actions. answer: (message, reply) -> the replies really sent;
    both may be replaced before the first client comes.
    """

    def __init__(self, leases: list[SlotLease]) -> None:
        self.leases = list(leases)
        self.policy: Callable[[SlotLease, int], np.ndarray] = drive
        self.answer: Callable[[object, object], list[object]] = lambda message, reply: [reply]
        self.episodes: dict[str, Served] = {}
        self.received: list[object] = []
        self.chunk_steps, self.action_dim = CHUNK_STEPS, 7
        self.server_id = "first"
        self._by_start_key: dict[str, str] = {}
        self._by_slot = {lease.slot_id: lease for lease in leases}
        self._socket = RouterSocket("tcp://127.0.0.1:*")
        self.endpoint = self._socket.endpoint
        self._wakeup = Wakeup()
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def sealed(self) -> dict[str, Served]:
        return {name: served for name, served in self.episodes.items() if served.end}

    def restart(self) -> None:
        """As after a crash: sealed episodes are known, open ones are lost and leased again."""
        self.server_id = "second"
        for name in [name for name, served in self.episodes.items() if served.end is None]:
            self.leases.append(self.episodes.pop(name).lease)
        self._by_start_key.clear()

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        self._wakeup.set()
        self._thread.join(HANG_S)
        self._socket.close()
        self._wakeup.close()

    def _serve(self) -> None:
        poller = Poller([self._socket], self._wakeup)
        while not self._is_closing:
            poller.wait(0.5)
            while (received := self._socket.receive()) is not None:
                envelope = decode(received.frames)
                self.received.append(envelope.message)
                reply = self._reply(envelope.message)
                for sent in self.answer(envelope.message, reply):
                    self._socket.send(received.peer, sent, envelope.request_id)

    def _reply(self, message: object) -> object:
        if isinstance(message, Hello):
            return Welcome(
                protocol_version=PROTOCOL_VERSION,
                server_id=self.server_id,
                policy="scripted",
                active_version="base",
                chunk_steps=self.chunk_steps,
                action_dim=self.action_dim,
                proprio_dim=8,
                images=CAMERAS,
            )
        if isinstance(message, Assign):
            given, self.leases = self.leases[: message.count], self.leases[message.count :]
            return Assignments(given, 0.0 if given else 0.05)
        if isinstance(message, EpisodeStart):
            new_id = uuid.uuid4().hex
            episode_id = self._by_start_key.setdefault(message.start_key, new_id)
            if episode_id == new_id:
                lease = self._by_slot.get(message.slot_id, make_lease(0))  # "": a robot's own task
                self.episodes[new_id] = Served(lease)
            return EpisodeStarted(episode_id, "base")
        if isinstance(message, Telemetry):
            return Ok()
        assert isinstance(message, Act | EpisodeEnd)
        served = self.episodes.get(message.episode_id)
        if served is None:
            return Fault("unknown_episode", message.episode_id)
        return (
            self._act(served, message) if isinstance(message, Act) else self._end(served, message)
        )

    def _act(self, served: Served, act: Act) -> Chunk:
        if act.step_index not in served.chunks:
            if act.step_index:
                served.executed.append(act.executed)
            actions_KA = self.policy(served.lease, act.step_index)
            chunk = Chunk(act.episode_id, act.step_index, actions_KA, "base")
            served.chunks[act.step_index] = chunk
        return served.chunks[act.step_index]

    def _end(self, served: Served, end: EpisodeEnd) -> EpisodeSealed | Fault:
        if served.end is None:
            if len(end.executed) != (CHUNK_STEPS if served.chunks else 0):
                return Fault("bad_array", "executed: expected the codes of the last chunk")
            served.end = end
            served.executed.append(end.executed)
        return EpisodeSealed(end.episode_id, served.end.outcome, served.end.outcome != "aborted")
