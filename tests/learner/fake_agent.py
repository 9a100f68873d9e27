"""An agent in memory: plays posted orders with a policy and keeps what it has not been acked."""

import dataclasses
import hashlib
import threading
from collections import Counter
from types import MappingProxyType

import numpy as np
from micro_fixtures import play

from agent.episode_writer import EpisodeWriter
from agent.wire.messages import Activated, SealedEpisode

HOLD_S = 0.001  # of every activation


class FakeAgent:
    """Stands where an AgentLink does. Outcomes follow from the slot, so a replay repeats them; of
    evaluations from version and noise, so that the same trial has the same end in every row.

    `played` holds episodes by (version, draw, instruction), on which alone they depend: agents
    of the same base model may share it.
    """

    def __init__(self, folder, policy_of, played):
        self.folder, self.policy_of, self.played = folder, policy_of, played
        self.orders, self.unacked, self.acked, self.active = {}, {}, {}, []
        self.lock = threading.Lock()
        self.rejected = {}  # episode id -> reason
        self.runs = Counter()  # how often a slot was run

    def post_orders(self, orders, held=MappingProxyType({})):
        for order in orders:
            assert self.orders.setdefault(order.order_id, order) == order
            with self.lock:
                known = {e.slot_id for e in [*self.unacked.values(), *self.acked.values()]} | {
                    *held
                }
            for k in range(order.slots):
                if f"{order.order_id}#{k}" not in known:
                    episode = self.run_slot(order, k)
                    with self.lock:
                        self.unacked[episode.episode_id] = episode

    def run_slot(self, order, k):
        slot_id = f"{order.order_id}#{k}"
        trial = f"{order.version} {order.noise_key}#{k}" if order.phase == "eval" else slot_id
        draw = int.from_bytes(hashlib.sha256(trial.encode()).digest()[:4], "big")
        policy, key = self.policy_of(order.version), (order.version, draw, order.instruction)
        if key not in self.played:
            changes = {"version": order.version, "instruction": order.instruction}
            self.played[key] = play(policy, draw, 2, success=draw % 2 == 0, **changes)
        episode = self.played[key]
        meta = dataclasses.replace(
            episode.meta, episode_id=self.mint_id(slot_id),
            order_id=order.order_id, slot_id=slot_id, task=order.task,
            phase=str(order.phase), temperature=order.temperature, split=order.split,
        )  # fmt: skip
        path = self.folder / f"{meta.episode_id}.mcap"
        path.unlink(missing_ok=True)
        writer = EpisodeWriter(path, meta)
        for chunk in episode.chunks:
            writer.append(chunk)
        sha256, _ = writer.seal(episode.end)
        return SealedEpisode(
            meta.episode_id, sha256, order.order_id, slot_id, order.suite, order.task,
            order.split, order.init_state, str(order.phase), order.version, episode.end.outcome,
            episode.end.steps, True, np.frombuffer(path.read_bytes(), dtype=np.uint8),
        )  # fmt: skip

    def mint_id(self, slot_id):
        run = f"{slot_id} {self.runs[slot_id]}" if self.runs[slot_id] else slot_id
        self.runs[slot_id] += 1
        return hashlib.sha256(run.encode()).hexdigest()[:32]

    def reject(self, reasons):
        self.rejected |= reasons
        for episode_id in reasons:
            with self.lock:
                held = self.acked.pop(episode_id, None) or self.unacked.pop(episode_id, None)
            if held is not None:
                order, _, k = held.slot_id.rpartition("#")
                episode = self.run_slot(self.orders[order], int(k))
                with self.lock:
                    self.unacked[episode.episode_id] = episode

    def fetch(self, limit, wait_s):
        with self.lock:
            items = list(self.unacked.values())[:limit]
        if not items:
            threading.Event().wait(0.005)
        return items

    def acknowledge(self, sha256_by_id):
        with self.lock:
            for episode_id in sha256_by_id:
                self.acked[episode_id] = self.unacked.pop(episode_id)

    def activate(self, version):
        previous = self.active[-1] if self.active else "base"
        self.active.append(version)
        return Activated(version, previous, HOLD_S)

    def close(self):
        pass
