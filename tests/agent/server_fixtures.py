"""A real server in a thread, with a policy that tells what it was asked."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from patience import HANG_S

from agent.adapters import AdapterStore
from agent.config import AgentConfig, PolicyConfig, TaskConfig
from agent.metrics import AgentMetrics
from agent.noop_policy import NoopPolicy
from agent.policy import ActRequest, ActResult
from agent.server.app import Server
from agent.wire.messages import (
    Act,
    Assign,
    EpisodeEnd,
    EpisodeStart,
    Executed,
    Hello,
    LearnerHello,
    Order,
    Outcome,
    PostOrders,
    Status,
)
from agent.wire.sockets import DealerClient

K, A, P = 4, 7, 8


class CountingPolicy(NoopPolicy):
    """Answers the request's sequence number, so that a repeated sample is visible."""

    def __init__(self, **kwargs) -> None:
        super().__init__(K, A, P, image_size=16, **kwargs)
        self.batches: list[list[ActRequest]] = []
        self.gate = threading.Event()  # cleared: a batch waits inside the policy
        self.gate.set()
        self.is_held = False
        self.fail_next = False

    def act(self, requests: list[ActRequest]) -> list[ActResult]:
        self.is_held = True
        assert self.gate.wait(HANG_S)
        self.is_held = False
        if self.fail_next:
            self.fail_next = False
            raise ZeroDivisionError("made to fail")
        assert {request.version for request in requests} <= self.resident()
        first = sum(map(len, self.batches))
        self.batches.append(requests)
        return [
            ActResult(
                np.full((K, A), first + i, np.float32),
                np.zeros((K, A), np.int32),
                np.zeros((K, A), np.float32),
            )
            for i in range(len(requests))
        ]


class RunningServer:
    """A server, its policy and store, and clients of it."""

    def __init__(self, folder: Path, policy: CountingPolicy, **settings) -> None:
        defaults = {
            "state_dir": str(folder / "agent"),
            "adapters_dir": str(folder / "adapters"),
            "robots_endpoint": "tcp://127.0.0.1:0",
            "operator_endpoint": "tcp://127.0.0.1:0",
            "policy": PolicyConfig(kind="noop", adapter_slots=3),
            "tasks": {"own": TaskConfig("do your own thing")},
            "journal_flush_interval_s": 0.02,
        }
        self.policy = policy
        self.store = AdapterStore(folder / "adapters")
        self.metrics = AgentMetrics()
        self.server = Server(AgentConfig(**{**defaults, **settings}), lambda: policy, self.metrics)
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._clients: list[DealerClient] = []
        self._thread.start()
        assert self._ready.wait(HANG_S)

    def _run(self) -> None:
        with self.server:
            self.server.run(self._stop.is_set, self._ready.set)

    def client(self, timeout_s: float = HANG_S) -> DealerClient:
        self._clients.append(DealerClient(self.server.robots_endpoint, timeout_s))
        return self._clients[-1]

    def operator(self, epoch: int = 1, revision: int = 0) -> DealerClient:
        self._clients.append(DealerClient(self.server.operator_endpoint, HANG_S))
        if epoch:
            self._clients[-1].request(LearnerHello("learner", epoch, revision=revision))
        return self._clients[-1]

    def publish(self, number: int) -> str:
        manifest = self.store.publish(
            number,
            {"weights.bin": bytes([number])},
            parent="base",
            task="own",
            base_sha256=NoopPolicy.base_sha256,
            method="test",
            metrics={},
        )
        return manifest.version

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def samples(self) -> dict[tuple[str, ...], float]:
        """(name, label values...) -> value, of all metrics."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
        }

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + HANG_S
        while not condition():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    @contextmanager
    def receiving(self, messages: int) -> Iterator[None]:
        """Wait at the end until the server has taken so many messages that were sent inside."""
        operator, state = self.operator(epoch=0), self.server._state
        expected = state.requests + messages
        yield
        self.wait_until(lambda: state.requests >= expected)
        operator.request(Status())  # the loop is done with what came before

    def wait_for_sample(self, name: str) -> float:
        """A value that the loop shows every now and then, once it is there and not 0."""
        self.wait_until(lambda: bool(self.samples().get((name,))))
        return self.samples()[name,]

    def stop(self) -> None:
        self._stop.set()
        self.server.wake()
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        for client in self._clients:
            client.close()


@contextmanager
def running(folder: Path, policy: CountingPolicy | None = None, **settings):
    server = RunningServer(folder, policy or CountingPolicy(adapter_slots=3), **settings)
    try:
        yield server
    finally:
        server.policy.gate.set()
        server.stop()


def make_order(order_id: str = "train/0/0/0/0", **changes) -> Order:
    fields = {
        "order_id": order_id,
        "suite": "toy",
        "task": "reach",
        "instruction": "reach the goal",
        "split": "train",
        "init_state": 3,
        "horizon_steps": 20,
        "slots": 2,
        "phase": "train",
        "version": "base",
        "temperature": 1.0,
        "run_seed": 7,
        "noise_key": order_id,
    }
    return Order(**{**fields, **changes})


def post(operator: DealerClient, *orders: Order, epoch: int = 1) -> None:
    operator.request(PostOrders(epoch, list(orders)))


def observe(episode_id: str, step_index: int, **changes) -> Act:
    image = np.full((16, 16, 3), max(step_index, 0) % 256, np.uint8)
    fields = {
        "images": {"agentview": image, "wrist": image},
        "proprio": np.zeros(P, np.float32),
        "executed": np.full(K if step_index else 0, Executed.RUN, np.uint8),
    }
    return Act(episode_id, step_index, **{**fields, **changes})


def finish(episode_id: str, outcome: str = Outcome.SUCCESS, chunks: int = 1, **changes):
    executed = np.full(K if chunks else 0, Executed.RUN, np.uint8)
    return EpisodeEnd(episode_id, outcome, chunks * K, executed, **changes)


def start_own(client: DealerClient, client_id: str = "robot", task: str = "own"):
    client.request(Hello(client_id, "test"))
    return client.request(EpisodeStart(client_id, uuid.uuid4().hex, task=task))


def take_slot(client: DealerClient, client_id: str = "robot", start_key: str = ""):
    """Leases one slot and starts it; returns (lease, started)."""
    client.request(Hello(client_id, "test"))
    leases = client.request(Assign(client_id, "toy", 1)).leases
    assert leases
    key = start_key or uuid.uuid4().hex
    return leases[0], client.request(EpisodeStart(client_id, key, slot_id=leases[0].slot_id))
