"""A real simulator worker that takes its time, and what a test asks of it and of its server."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from observed_run import process

from agent.ledger import LedgerReader
from agent.wire.messages import LearnerHello, Order, Phase, PostOrders, ServerStatus, Status
from agent.wire.sockets import DealerClient
from sim_bridge.log import EndLine, read_log

SUITE, TASK = "toy", "move_up"
STEPS = 80  # of an episode
PACE_HZ = 8  # so that one lasts ten seconds, and a chunk one
NOTICED_S = 300.0  # ten times as long as the protocol says, a third of what TCP alone would take


@dataclass
class Worker:
    """One worker process; its folder has its log of ends and what it said."""

    pid: int
    folder: Path
    is_running: Callable[[], bool]

    def said(self) -> str:
        """All that it has printed so far."""
        return (self.folder / "output.log").read_text()

    def ends(self) -> list[EndLine]:
        """The ends that it knows to be durable."""
        log = self.folder / "client.jsonl"
        return read_log(log) if log.exists() else []


@contextmanager
def worker(
    folder: Path, endpoint: str, *settings: str, before: Sequence[str] = ()
) -> Iterator[Worker]:
    """One body in real time. before: words of a command that becomes the worker."""
    folder.mkdir()
    words = [
        *before, sys.executable, "-m", "sim_bridge", f"suite={SUITE}", "envs=1",
        f"pace_hz={PACE_HZ}", f"endpoint={endpoint}", f"client_id={folder.name}",
        f"log_path={folder}/client.jsonl", "request_timeout_s=1", *settings,
    ]  # fmt: skip
    with process(words, folder / "output.log") as child:
        yield Worker(child.pid, folder, lambda: child.poll() is None)


class Watched:
    """A server's operator, who posts orders and looks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client = DealerClient(f"ipc://{folder}/operator.sock", NOTICED_S)
        self._client.request(LearnerHello("test", 1))

    def order(self, name: str) -> None:
        """One episode more."""
        order = Order(
            order_id=f"train/{name}", suite=SUITE, task=TASK, instruction="move up", split="train",
            init_state=0, horizon_steps=STEPS, slots=1, phase=Phase.TRAIN, version="base",
            temperature=1.0, run_seed=0, noise_key=name,
        )  # fmt: skip
        self._client.request(PostOrders(1, [order]))

    def status(self) -> ServerStatus:
        """What the server says of itself."""
        status: ServerStatus = self._client.request(Status())
        return status

    def ends(self) -> list[tuple[str, str, bool]]:
        """Slot, outcome and whether it counted of the episodes that have ended, in that order."""
        ledger = LedgerReader(self._folder / "agent" / "agent.db")
        rows = sorted(ledger.episodes(), key=lambda row: row.sealed_seq)
        ledger.close()
        return [(row.slot_id, row.outcome, row.counted) for row in rows if row.sealed_seq]

    def close(self) -> None:
        """Lets go of the socket."""
        self._client.close()


@contextmanager
def watching(folder: Path) -> Iterator[Watched]:
    """The operator of the server in `folder`."""
    watched = Watched(folder)
    try:
        yield watched
    finally:
        watched.close()


def seconds_until(condition: Callable[[], bool], what: str, limit_s: float = NOTICED_S) -> float:
    """Waits; how long that took."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < limit_s, f"{what}: not within {limit_s:g} s"
        time.sleep(0.1)
    return time.monotonic() - started_s


def connections(pid: int, port: int) -> int:
    """TCP connections over a port, as the network of that process sees them."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    established = [line.split() for line in lines if line.split()[3] == "01"]
    return sum(f":{port:04X}" in words[1] or f":{port:04X}" in words[2] for words in established)
