"""Episodes larger than a message go from a robot through a real server to a learner's disk."""

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import HANG_S
from test_minimal_robot import noop_server

from agent.config import AgentConfig
from agent.episode import read_episode
from agent.ledger import EpisodeState, LedgerReader
from agent.wire.codec import DEFAULT_LIMITS
from agent.wire.errors import WireError
from agent.wire.messages import (
    Act,
    Assign,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    Executed,
    Hello,
    Order,
    Outcome,
    Phase,
)
from agent.wire.sockets import DealerClient
from learner.link import AgentLink, Session
from learner.receiver import PARTIAL_PREFIX, Inbox, Receiver
from learner.store import EpisodeRow, LearnerStore

SUITE, TASK = "yard", "reach"
CHUNKS, HEIGHT, WIDTH = 24, 480, 640  # two cameras: 42 MiB that no compression makes smaller
CHUNK_BYTES = 2 * HEIGHT * WIDTH * 3
PAUSE_S = 0.02  # where the server's disk is behind
RSS_MAX_BYTES = 1_000_000_000
ORDERS = [
    Order(
        order_id=f"train/0/0/0/{number}", suite=SUITE, task=TASK, instruction=TASK, split="train",
        init_state=number, horizon_steps=1000, slots=1, phase=Phase.TRAIN, version="base",
        temperature=1.0, run_seed=0, noise_key=str(number),
    )
    for number in range(2)
]  # fmt: skip


class Life:
    """A learner's receiving half: store, inbox, and the thread that feeds it."""

    def __init__(self, folder: Path) -> None:
        (folder / "learner").mkdir(exist_ok=True)
        self._stop, self._folder = threading.Event(), folder
        self.store = LearnerStore(folder / "learner" / "learner.db")
        self.inbox = Inbox(folder / "learner" / "episodes", self.store)
        base_sha256 = hashlib.sha256(b"noop").hexdigest()
        self._session = Session(self.store, "test", base_sha256, self.inbox.note_epoch)
        self.receiver = Receiver(self.link(), self.inbox, self._stop)
        self.receiver.start()

    def link(self) -> AgentLink:
        client = DealerClient(f"ipc://{self._folder}/operator.sock", HANG_S)
        return AgentLink(self._session, client, self._stop, self.inbox.refuse)

    def wait(self) -> dict[str, EpisodeRow]:
        """The episode of every order."""
        deadline_s = time.monotonic() + HANG_S
        return self.inbox.wait_for(ORDERS, lambda: time.monotonic() > deadline_s)

    def end(self) -> None:
        self._stop.set()
        self.receiver.join(HANG_S)
        assert not self.receiver.is_alive()
        self.store.close()


@contextmanager
def life(folder: Path) -> Iterator[Life]:
    """One life, ended whatever happens."""
    learner = Life(folder)
    try:
        yield learner
    finally:
        learner.end()


def request(client: DealerClient, message: object) -> Any:
    """The reply, asked for again while the server's disk is behind."""
    deadline_s = time.monotonic() + HANG_S
    while True:
        try:
            return client.request(message)
        except WireError as error:
            if error.code != "overloaded" or time.monotonic() > deadline_s:
                raise
        time.sleep(PAUSE_S)


def play(endpoint: str, sizes: Sequence[tuple[int, int]]) -> tuple[EpisodeSealed, int]:
    """Plays the next slot with pictures of these sizes, one step each.

    Returns how it ended, and how many chunks the server said it had recorded.
    """
    client, rng = DealerClient(endpoint, HANG_S), np.random.default_rng(0)
    welcome = client.request(Hello("robot", "test"))
    (lease,) = client.request(Assign("robot", SUITE, 1)).leases
    started = client.request(EpisodeStart("robot", uuid.uuid4().hex, slot_id=lease.slot_id))
    executed, recorded = np.zeros(0, np.uint8), 0
    for step, size in enumerate(sizes):
        pictures = {
            camera: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for camera in welcome.images
        }
        assert len(pictures) == 2
        proprio = np.zeros(welcome.proprio_dim, np.float32)
        chunk = request(client, Act(started.episode_id, step, pictures, proprio, executed))
        recorded += chunk.recorded
        executed = np.full(welcome.chunk_steps, Executed.RUN, np.uint8)
    steps = len(sizes) * welcome.chunk_steps
    sealed = request(client, EpisodeEnd(started.episode_id, Outcome.SUCCESS, steps, executed))
    client.close()
    return sealed, recorded


def play_whole(endpoint: str, sizes: Sequence[tuple[int, int]]) -> str:
    """Plays the next slot; returns the id of its episode, all of which was recorded."""
    sealed, recorded = play(endpoint, sizes)
    assert sealed.counted
    assert recorded == len(sizes)
    return sealed.episode_id


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had since its start, or since `forget_peak`."""
    (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def forget_peak(pid: int) -> None:
    """Begins to measure anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@pytest.mark.slow
@pytest.mark.parametrize("is_cut", [False, True], ids=["at once", "learner ends within"])
def test_an_episode_above_the_message_limit_reaches_the_learner_whole(
    tmp_path: Path, is_cut: bool
) -> None:
    with noop_server(tmp_path, TASK) as (endpoint, _):
        with life(tmp_path) as learner:
            learner.link().post_orders(ORDERS)
        large = play_whole(endpoint, [(HEIGHT, WIDTH)] * CHUNKS)
        small = play_whole(endpoint, [(64, 64), (48, 64)])
        path = tmp_path / "agent" / "episodes" / f"{large}.mcap"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stat().st_size > DEFAULT_LIMITS.max_message_bytes
        if is_cut:
            partial = tmp_path / "learner" / "episodes" / f"{PARTIAL_PREFIX}{large}"
            with life(tmp_path):
                deadline_s = time.monotonic() + HANG_S
                while not (partial.exists() and partial.stat().st_size):
                    assert time.monotonic() < deadline_s
                    time.sleep(0.001)
        with life(tmp_path) as learner:
            rows = learner.wait()
            episode = learner.inbox.read(next(r for r in rows.values() if r.episode_id == large))
            assert learner.store.known_sha256(large) == sha256
            assert learner.store.counts()["quarantined"] == 0
            deadline_s = time.monotonic() + HANG_S
            while path.exists():  # until the acknowledgement is there
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
    assert {row.episode_id for row in rows.values()} == {large, small}
    assert len(episode.chunks) == CHUNKS
    assert {p.shape for c in episode.chunks for p in c.images.values()} == {(HEIGHT, WIDTH, 3)}
    kept = tmp_path / "learner" / "episodes"
    assert not list(kept.glob(f"{PARTIAL_PREFIX}*"))
    assert read_episode(kept / f"{small}.mcap").end.outcome == Outcome.SUCCESS
    ledger = LedgerReader(tmp_path / "agent" / "agent.db")
    states = {row.episode_id: row.state for row in ledger.episodes()}
    ledger.close()
    assert states == {large: EpisodeState.ACKED, small: EpisodeState.ACKED}


@pytest.mark.slow
def test_an_episode_of_200_mib_goes_through_in_bounded_memory(tmp_path: Path) -> None:
    chunks = -(-(200 << 20) // CHUNK_BYTES)
    assert chunks * CHUNK_BYTES < AgentConfig().max_episode_bytes
    with noop_server(tmp_path, TASK) as (endpoint, server_pid):
        with life(tmp_path) as learner:
            learner.link().post_orders(ORDERS)
        began_s = time.monotonic()
        large = play_whole(endpoint, [(HEIGHT, WIDTH)] * chunks)
        played_s = time.monotonic() - began_s
        play_whole(endpoint, [(64, 64)])
        path = tmp_path / "agent" / "episodes" / f"{large}.mcap"
        size_bytes, sha256 = path.stat().st_size, file_sha256(path)
        assert size_bytes > 200 << 20
        forget_peak(os.getpid())
        loaded_bytes = peak_bytes(os.getpid())  # by other tests of this process
        began_s = time.monotonic()
        with life(tmp_path) as learner:
            rows = learner.wait()
            fetched_s = time.monotonic() - began_s
            fetching_bytes = peak_bytes(os.getpid()) - loaded_bytes
            row = next(r for r in rows.values() if r.episode_id == large)
            assert file_sha256(tmp_path / "learner" / "episodes" / row.file) == sha256
            chunk_count = len(learner.inbox.read(row).chunks)
        reading_bytes = peak_bytes(os.getpid()) - loaded_bytes
        server_bytes = peak_bytes(server_pid)
    assert chunk_count == chunks
    print(
        f"\n{size_bytes >> 20} MiB: played in {played_s:.0f} s, fetched in {fetched_s:.1f} s; "
        f"peaks: server {server_bytes >> 20} MiB; learner +{fetching_bytes >> 20} MiB fetching, "
        f"+{reading_bytes >> 20} MiB reading it whole"
    )
    assert max(server_bytes, fetching_bytes, reading_bytes) < RSS_MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [(), (f"max_episode_bytes={200 << 20}",)], ids=["default", "200 MiB"]
)
def test_the_end_says_that_an_episode_was_above_the_cap(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    cap_bytes = 200 << 20 if settings else AgentConfig().max_episode_bytes
    fitting = cap_bytes // CHUNK_BYTES
    with noop_server(tmp_path, TASK, *settings) as (endpoint, server_pid):
        with life(tmp_path) as learner:
            learner.link().post_orders(ORDERS)
        sealed, recorded = play(endpoint, [(HEIGHT, WIDTH)] * (fitting + 2))
        server_bytes = peak_bytes(server_pid)
        log = (tmp_path / "agent.log").read_text()
    assert (sealed.outcome, sealed.counted, sealed.recorded) == (Outcome.ABORTED, False, False)
    assert fitting - 1 <= recorded <= fitting
    ledger = LedgerReader(tmp_path / "agent" / "agent.db")
    row = next(row for row in ledger.episodes() if row.episode_id == sealed.episode_id)
    ledger.close()
    for part in ("too_large: ", f"max_episode_bytes is {cap_bytes}", "send smaller pictures"):
        assert part in row.reason
    assert f"episode {sealed.episode_id} is too large to be kept whole" in log
    assert server_bytes < RSS_MAX_BYTES
    print(f"\nabove {cap_bytes >> 20} MiB: peak of the server {server_bytes >> 20} MiB")


def file_sha256(path: Path) -> str:
    """In bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
