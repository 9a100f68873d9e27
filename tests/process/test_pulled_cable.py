"""A pulled cable between a real client and a real server, in two network namespaces.

Nobody is told: no connection ends by itself, packets go nowhere. Both sides have to notice.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from paced_worker import TASK, connections, seconds_until, watching, worker
from patience import HANG_S
from test_minimal_robot import noop_server

from agent.wire.messages import Outcome

pytestmark = pytest.mark.slow

ADDRESS, PORT = "10.217.83.1", 5555
LEASE_S = 5.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=HANG_S)


def why_no_namespaces() -> str:
    """Why they cannot be made here, or ""."""
    if shutil.which("ip") is None:
        return "there is no `ip` (package iproute2)"
    name = f"perennial-{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        return f"ip netns add: {error.stderr.decode().strip()}"
    ip("netns", "del", name)
    return ""


@dataclass(frozen=True)
class Cable:
    """A server's and a client's network, each with one end of the only way between them."""

    name: str

    def inside(self, end: str) -> list[str]:
        """Words that have a command run at that end."""
        return ["ip", "netns", "exec", f"{self.name}-{end}"]

    def set(self, end: str, state: str) -> None:
        """Pull it out of, or plug it into, that end: `down` or `up`."""
        ip("-n", f"{self.name}-{end}", "link", "set", "cable", state)


@pytest.fixture
def cable() -> Iterator[Cable]:
    why = why_no_namespaces()
    if why:
        why = f"no network namespaces: {why}; needs root and iproute2"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    made = Cable(f"perennial-{secrets.token_hex(3)}")
    ends = {"server": f"{ADDRESS}/24", "client": f"{ADDRESS[:-1]}2/24"}
    try:
        for end in ends:
            ip("netns", "add", f"{made.name}-{end}")
        server, client = (f"{made.name}-{end}" for end in ends)
        ip("link", "add", "cable", "netns", server, "type", "veth",
           "peer", "name", "cable", "netns", client)  # fmt: skip
        for end, address in ends.items():
            ip("-n", f"{made.name}-{end}", "addr", "add", address, "dev", "cable")
            ip("-n", f"{made.name}-{end}", "link", "set", "lo", "up")
            made.set(end, "up")
        yield made
    finally:
        for end in ends:
            subprocess.run(["ip", "netns", "del", f"{made.name}-{end}"], check=False, timeout=60)


@contextmanager
def serving(folder: Path, cable: Cable, lease_s: float) -> Iterator[tuple[str, int]]:
    """A server at its end of the cable."""
    settings = (
        f"robots_endpoint=tcp://{ADDRESS}:{PORT}", "insecure=true", "http_port=0",
        f"lease_s={lease_s:g}",
    )  # fmt: skip
    with noop_server(folder, TASK, *settings, before=cable.inside("server")) as server:
        yield server


def test_a_client_whose_cable_was_pulled_loses_its_slot_and_comes_back(
    tmp_path: Path, cable: Cable
) -> None:
    with (
        serving(tmp_path, cable, LEASE_S) as (endpoint, server_pid),
        watching(tmp_path) as server,
        worker(tmp_path / "far", endpoint, before=cable.inside("client")) as far,
    ):
        server.order("a")
        seconds_until(lambda: server.status().open_episodes == 1, "it begins", HANG_S)
        assert connections(server_pid, PORT) == connections(far.pid, PORT) == 1
        pulled_s = time.monotonic()
        cable.set("client", "down")
        seconds_until(lambda: server.status().open_episodes == 0, "the end of its episode")
        freed_s = time.monotonic() - pulled_s
        with worker(tmp_path / "near", endpoint, before=cable.inside("server")) as near:
            seconds_until(lambda: bool(near.ends()), "another has its slot")
        seconds_until(lambda: "Still asking" in far.said(), "the client says so")
        seconds_until(lambda: connections(server_pid, PORT) == 0, "the server cuts")
        server_s = time.monotonic() - pulled_s
        seconds_until(lambda: connections(far.pid, PORT) == 0, "the client cuts")
        client_s = time.monotonic() - pulled_s
        server.order("b")
        cable.set("client", "up")
        told_s = seconds_until(lambda: "unknown_episode" in far.said(), "the client is told")
        seconds_until(lambda: bool(far.ends()), "it goes on")
        assert far.is_running()
        assert [end.slot_id for end in near.ends()] == ["train/a#0"]
        assert [end.slot_id for end in far.ends()] == ["train/b#0"]
        assert server.ends() == [
            ("train/a#0", Outcome.ABORTED, False),
            ("train/a#0", Outcome.TIMEOUT, True),
            ("train/b#0", Outcome.TIMEOUT, True),
        ]
    print(
        f"\na pulled cable: the lease is free after {freed_s:.1f} s, the server cuts after "
        f"{server_s:.1f} s, the client within {client_s:.1f} s; it is told {told_s:.1f} s after "
        "the cable is back"
    )


@pytest.mark.parametrize("end", ["server", "client"])
def test_an_episode_goes_on_when_the_cable_is_back_before_its_lease_runs_out(
    tmp_path: Path, cable: Cable, end: str
) -> None:
    """Both connections are gone by then: it is answered over a new one."""
    with (
        serving(tmp_path, cable, 600.0) as (endpoint, server_pid),
        watching(tmp_path) as server,
        worker(tmp_path / "far", endpoint, before=cable.inside("client")) as far,
    ):
        server.order("a")
        seconds_until(lambda: server.status().open_episodes == 1, "it begins", HANG_S)
        pulled_s = time.monotonic()
        cable.set(end, "down")
        seconds_until(lambda: connections(server_pid, PORT) == 0, "the server cuts")
        server_s = time.monotonic() - pulled_s
        seconds_until(lambda: connections(far.pid, PORT) == 0, "the client cuts")
        client_s = time.monotonic() - pulled_s
        cable.set(end, "up")
        connected_s = seconds_until(lambda: connections(server_pid, PORT) == 1, "it is back")
        seconds_until(lambda: bool(far.ends()), "it goes on")
        assert far.is_running()
        assert server.ends() == [("train/a#0", Outcome.TIMEOUT, True)]
    print(
        f"\na cable pulled at the {end}: the server cuts after {server_s:.1f} s, the client within "
        f"{client_s:.1f} s; connected {connected_s:.1f} s after the cable is back"
    )
