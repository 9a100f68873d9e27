"""A real agent answers a robot while a peer sends messages without an end or of many parts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from patience import HANG_S

from agent.wire.keys import load_client_keys
from agent.wire.messages import Hello, Ok, Telemetry
from agent.wire.sockets import DealerClient

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CUTS = 3
GROWTH_BYTES = 512 << 20  # it was 2 GB in seconds
REQUEST_S = 20.0
# A client with a key, whose messages libzmq itself sends whole.
PEER_WITH_KEYS = """
import sys
from pathlib import Path
import zmq
from agent.wire.keys import load_client_keys
keys = load_client_keys(Path(sys.argv[2]))
peer = zmq.Context.instance().socket(zmq.DEALER)
peer.curve_serverkey = keys.server_public.encode()
peer.curve_publickey, peer.curve_secretkey = keys.pair.public.encode(), keys.pair.secret.encode()
peer.connect(sys.argv[1])
while True:
    peer.send_multipart([b"x"] * int(sys.argv[3]), copy=True)
"""
# Connects again and again, and pours the same into each connection until it is cut.
PEER = """
import socket, struct, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
greeting = b"\\xff" + bytes(8) + b"\\x7f\\x03\\x00" + b"NULL".ljust(20, b"\\0") + bytes(32)
ready = b"\\x05READY\\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
block = {
    "large": b"\\x03" + struct.pack(">Q", 1 << 20) + bytes(1 << 20),
    "empty": b"\\x01\\x00" * (1 << 15),
    "millions": b"\\x01\\x01x" * 1_999_999 + b"\\x00\\x01x",
    "tens of thousands": b"\\x01\\x01x" * 59_999 + b"\\x00\\x01x",
}[kind]
while True:
    try:
        with socket.create_connection((host, port), 60) as peer:
            peer.sendall(greeting + b"\\x04" + bytes([len(ready)]) + ready)
            received = b""
            while b"READY" not in received:  # libzmq takes no message before it has said so
                more = peer.recv(4096)
                if not more:
                    raise ConnectionError
                received += more
            while True:
                peer.sendall(block)
    except OSError:
        pass
"""


def cuts(metrics_url: str) -> int:
    with urllib.request.urlopen(metrics_url, timeout=HANG_S) as response:
        lines = response.read().decode().splitlines()
    name = 'perennial_connections_cut_total{reason="flood"} '
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


@contextmanager
def serving(folder: Path, *own: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """An agent, and where it is reached."""
    config = folder / "agent.yaml"
    config.write_text("tasks: {own: {instruction: go}}\npolicy: {kind: noop}\n", encoding="utf-8")
    words = [
        *(sys.executable, "-m", "agent", f"--config={config}", f"state_dir={folder}/agent"),
        *(f"adapters_dir={folder}/adapters", "robots_endpoint=tcp://127.0.0.1:0"),
        *(f"operator_endpoint=ipc://{folder}/o.sock", *own),
    ]
    told = folder / "agent" / "endpoints.json"
    with subprocess.Popen(words, cwd=ROOT) as agent:
        try:
            started_s = time.monotonic()
            while not told.exists():
                assert agent.poll() is None
                assert time.monotonic() - started_s < HANG_S
                time.sleep(0.05)
            yield agent, json.loads(told.read_text())
        finally:
            agent.kill()


@pytest.mark.parametrize("kind", ["large", "empty", "millions", "tens of thousands"])
def test_a_robot_is_answered_while_a_peer_floods(tmp_path: Path, kind: str) -> None:
    with serving(tmp_path) as (agent, endpoints):
        host, port = endpoints["robots"].removeprefix("tcp://").split(":")
        with DealerClient(endpoints["robots"], REQUEST_S) as robot:
            flood(agent, robot, endpoints, [PEER, host, port, kind])


@pytest.mark.parametrize("parts", [500_000, 60_000])
def test_a_robot_is_answered_while_a_client_with_a_key_floods(tmp_path: Path, parts: int) -> None:
    keys = tmp_path / "keys"
    for words in (
        ["init", keys / "agent"],
        *(
            ["add", keys / "agent", name, "--may", "act,report", "--out", keys / name]
            for name in ("robot", "peer")
        ),
    ):
        command = [sys.executable, "-m", "agent.cli_keys", *map(str, words)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=HANG_S, capture_output=True)
    with serving(tmp_path, f"keys_dir={keys}/agent") as (agent, endpoints):
        own = load_client_keys(keys / "robot")
        with DealerClient(endpoints["robots"], REQUEST_S, keys=own) as robot:
            peer = [PEER_WITH_KEYS, endpoints["robots"], str(keys / "peer"), str(parts)]
            flood(agent, robot, endpoints, peer)


def flood(
    agent: subprocess.Popen[bytes],
    robot: DealerClient,
    endpoints: dict[str, str],
    peer_words: list[str],
) -> None:
    process = psutil.Process(agent.pid)
    metrics_url = f"{endpoints['http']}/metrics"
    robot.request(Hello("robot", "test"))
    before_bytes = process.memory_info().rss
    with subprocess.Popen([sys.executable, "-c", *peer_words], cwd=ROOT) as peer:
        try:
            deadline_s = time.monotonic() + HANG_S
            while cuts(metrics_url) < CUTS:
                assert time.monotonic() < deadline_s
                assert peer.poll() is None
                # One attempt: whoever is connected loses nothing.
                assert robot.request(Telemetry("robot", {"envs": 1.0})) == Ok()
                assert process.memory_info().rss - before_bytes < GROWTH_BYTES
                time.sleep(0.05)
        finally:
            peer.kill()
    assert robot.request(Telemetry("robot", {"envs": 1.0})) == Ok()
    assert agent.poll() is None
