"""A real agent answers a robot while a peer sends messages without an end or of many parts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from patience import HANG_S

from agent.wire.messages import Hello, Ok, Telemetry
from agent.wire.sockets import DealerClient

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CUTS = 3
GROWTH_BYTES = 512 << 20  # it was 2 GB in seconds
REQUEST_S = 20.0
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


@pytest.mark.parametrize("kind", ["large", "empty", "millions", "tens of thousands"])
def test_a_robot_is_answered_while_a_peer_floods(tmp_path: Path, kind: str) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("tasks: {own: {instruction: go}}\npolicy: {kind: noop}\n", encoding="utf-8")
    words = [
        *(sys.executable, "-m", "agent", f"--config={config}", f"state_dir={tmp_path}/agent"),
        *(f"adapters_dir={tmp_path}/adapters", "robots_endpoint=tcp://127.0.0.1:0"),
        f"operator_endpoint=ipc://{tmp_path}/o.sock",
    ]
    told = tmp_path / "agent" / "endpoints.json"
    with subprocess.Popen(words, cwd=ROOT) as agent:
        try:
            started_s = time.monotonic()
            while not told.exists():
                assert agent.poll() is None
                assert time.monotonic() - started_s < HANG_S
                time.sleep(0.05)
            endpoints = json.loads(told.read_text())
            flood(agent, endpoints["robots"], f"{endpoints['http']}/metrics", kind)
        finally:
            agent.kill()


def flood(agent: subprocess.Popen[bytes], endpoint: str, metrics_url: str, kind: str) -> None:
    process = psutil.Process(agent.pid)
    host, port = endpoint.removeprefix("tcp://").split(":")
    with DealerClient(endpoint, REQUEST_S) as robot:
        robot.request(Hello("robot", "test"))
        before_bytes = process.memory_info().rss
        peer = subprocess.Popen([sys.executable, "-c", PEER, host, port, kind])
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
            peer.wait(HANG_S)
        assert robot.request(Telemetry("robot", {"envs": 1.0})) == Ok()
        assert agent.poll() is None
