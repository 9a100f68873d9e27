"""The server alone, with a policy that answers zeros, against a plain pyzmq echo in the same run.

python -m benchmarks.serving [SECONDS]   writes benchmarks/reports/serving.md

Every client sends an observation with two 224x224x3 images and waits for its chunk. The echo
server receives the same bytes and answers a ready-made reply, so the difference is what decoding,
checking, batching and recording cost. Clients share at most two processes: more would measure the
scheduler.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq

from agent.wire.codec import decode, encode
from agent.wire.messages import (
    Act,
    Assign,
    Chunk,
    EpisodeStart,
    Hello,
    LearnerHello,
    Order,
    PostOrders,
)
from agent.wire.sockets import DealerClient

REPORT = Path(__file__).parent / "reports" / "serving.md"
CLIENT_COUNTS = (1, 8, 32)
CLIENT_PROCESSES = 2
CHUNK_STEPS, ACTION_DIM, PROPRIO_DIM = 8, 7, 8
READY_LIMIT_S = 30.0


@dataclass(frozen=True)
class Row:
    """One measurement; latencies of a round trip in milliseconds."""

    server: str
    clients: int
    p50_ms: float
    p99_ms: float
    requests_per_s: float


def main() -> None:
    """Measures, prints, and writes the report."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    rows = []
    with _echo_server() as endpoint:
        for clients in CLIENT_COUNTS:
            rows.append(_measure("pyzmq echo", endpoint, [""] * clients, seconds))
    for name, phase, counts in (
        ("agent", "eval", CLIENT_COUNTS),
        ("agent, pixels journalled", "train", (1,)),
    ):
        for clients in counts:
            with _agent() as (endpoint, operator):
                episodes = _start_episodes(endpoint, operator, phase, clients)
                rows.append(_measure(name, endpoint, episodes, seconds))
    table = _table(rows)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(table, encoding="utf-8")
    print(table)


# ---- clients ---------------------------------------------------------------------------------


def _measure(name: str, endpoint: str, episodes: list[str], seconds: float) -> Row:
    """All clients at once; an episode id of "" means that the peer is the echo server."""
    shares = [share for i in range(CLIENT_PROCESSES) if (share := episodes[i::CLIENT_PROCESSES])]
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(shares)) as pool:
        jobs = [pool.apply_async(_drive, (endpoint, share, seconds)) for share in shares]
        latencies_s = np.concatenate([job.get(seconds * 10 + READY_LIMIT_S) for job in jobs])
    p50, p99 = np.percentile(latencies_s, [50, 99]) * 1e3
    return Row(name, len(episodes), float(p50), float(p99), len(latencies_s) / seconds)


def _drive(endpoint: str, episodes: list[str], seconds: float) -> np.ndarray:
    """Round-trip times [s] of clients that each have one request open; the first second is not
    counted."""
    rng = np.random.default_rng(0)
    images = {
        camera: rng.integers(0, 256, (224, 224, 3), np.uint8) for camera in ("agentview", "wrist")
    }
    poller = zmq.Poller()
    sockets: dict[zmq.Socket, int] = {}
    for number, _ in enumerate(episodes):
        socket = zmq.Context.instance().socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(endpoint)
        poller.register(socket, zmq.POLLIN)
        sockets[socket] = number
    steps, sent_s = [0] * len(episodes), [0.0] * len(episodes)

    def ask(socket: zmq.Socket) -> None:
        number = sockets[socket]
        executed = np.ones(CHUNK_STEPS if steps[number] else 0, np.uint8)
        proprio = np.zeros(PROPRIO_DIM, np.float32)
        act = Act(episodes[number], steps[number], images, proprio, executed)
        sent_s[number] = time.perf_counter()
        socket.send_multipart(encode(act, steps[number] + 1), copy=False)
        steps[number] += 1

    for socket in sockets:
        ask(socket)
    count_from_s = time.perf_counter() + 1.0
    latencies_s = []
    while (now_s := time.perf_counter()) < count_from_s + seconds:
        for socket, _ in poller.poll(1000):
            reply = decode(socket.recv_multipart()).message
            assert isinstance(reply, Chunk), reply
            done_s = time.perf_counter()
            if now_s >= count_from_s:
                latencies_s.append(done_s - sent_s[sockets[socket]])
            ask(socket)
    return np.array(latencies_s)


# ---- servers ---------------------------------------------------------------------------------


@contextmanager
def _echo_server() -> Iterator[str]:
    port = _free_port()
    endpoint = f"tcp://127.0.0.1:{port}"
    process = multiprocessing.get_context("spawn").Process(
        target=_echo, args=(endpoint,), daemon=True
    )
    process.start()
    try:
        yield endpoint
    finally:
        process.terminate()
        process.join(10)


def _echo(endpoint: str) -> None:
    actions = np.zeros((CHUNK_STEPS, ACTION_DIM), np.float32)
    reply = encode(Chunk(uuid.uuid4().hex, 0, actions, "base"), 1)
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.bind(endpoint)
    while True:
        frames = socket.recv_multipart(copy=False)
        socket.send_multipart([frames[0], *reply])


@contextmanager
def _agent() -> Iterator[tuple[str, str]]:
    """A server process; yields its robots and operator endpoints."""
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as folder:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "agent", "policy.kind=noop", f"state_dir={folder}/agent"),
                *(f"adapters_dir={folder}/adapters", "keep_eval_images_per_task=0"),
                f"robots_endpoint=tcp://127.0.0.1:{_free_port()}",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            path = Path(folder) / "agent" / "endpoints.json"
            deadline_s = time.monotonic() + READY_LIMIT_S
            while not path.exists():
                if time.monotonic() > deadline_s or process.poll() is not None:
                    raise SystemExit(
                        "the server did not start; try python -m agent policy.kind=noop"
                    )
                time.sleep(0.05)
            endpoints = json.loads(path.read_text(encoding="utf-8"))
            yield endpoints["robots"], endpoints["operator"]
        finally:
            process.terminate()
            process.wait(30)


def _start_episodes(endpoint: str, operator: str, phase: str, count: int) -> list[str]:
    order = Order(
        order_id="bench",
        suite="bench",
        task="bench",
        instruction="stand still",
        split=phase,
        init_state=0,
        horizon_steps=1_000_000,
        slots=count,
        phase=phase,
        version="base",
        temperature=0.0,
        run_seed=0,
        noise_key="bench",
    )
    with DealerClient(operator) as learner, DealerClient(endpoint) as client:
        learner.request(LearnerHello("bench", 1))
        learner.request(PostOrders(1, [order]))
        client.request(Hello("bench", "bench"))
        leases = client.request(Assign("bench", "bench", count)).leases
        starts = [EpisodeStart("bench", uuid.uuid4().hex, slot_id=o.slot_id) for o in leases]
        return [client.request(start).episode_id for start in starts]


def _free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        return socket.bind_to_random_port("tcp://127.0.0.1")


def _table(rows: list[Row]) -> str:
    lines = [
        "# Serving without a model",
        "",
        "`python -m benchmarks.serving`: a round trip with two 224×224×3 images (301 kB) to the",
        "server with a policy that answers zeros, against a plain pyzmq ROUTER that answers at",
        "once, in the same run. tcp loopback; clients in at most two processes, which share the",
        f"cores with the server. {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, pyzmq {zmq.__version__}.",
        "",
        "| server | clients | p50 ms | p99 ms | requests/s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.server} | {r.clients} | {r.p50_ms:.2f} | {r.p99_ms:.2f} | {r.requests_per_s:.0f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
