"""Episodes larger than a message go from a robot through a real server to a learner's disk."""

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_S
from test_minimal_robot import noop_server

from agent.episode import read_episode
from agent.ledger import EpisodeState, LedgerReader
from agent.wire.codec import DEFAULT_LIMITS
from agent.wire.messages import (
    Act,
    Assign,
    EpisodeEnd,
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


def play(endpoint: str, sizes: list[tuple[int, int]]) -> str:
    """Plays the next slot with pictures of these sizes, one step each; returns the episode's id."""
    client, rng = DealerClient(endpoint, HANG_S), np.random.default_rng(0)
    welcome = client.request(Hello("robot", "test"))
    (lease,) = client.request(Assign("robot", SUITE, 1)).leases
    started = client.request(EpisodeStart("robot", uuid.uuid4().hex, slot_id=lease.slot_id))
    executed = np.zeros(0, np.uint8)
    for step, size in enumerate(sizes):
        pictures = {
            camera: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for camera in welcome.images
        }
        assert len(pictures) == 2
        proprio = np.zeros(welcome.proprio_dim, np.float32)
        chunk = client.request(Act(started.episode_id, step, pictures, proprio, executed))
        assert chunk.recorded
        executed = np.full(welcome.chunk_steps, Executed.RUN, np.uint8)
    steps = len(sizes) * welcome.chunk_steps
    sealed = client.request(EpisodeEnd(started.episode_id, Outcome.SUCCESS, steps, executed))
    assert sealed.counted
    client.close()
    return sealed.episode_id


@pytest.mark.slow
@pytest.mark.parametrize("is_cut", [False, True], ids=["at once", "learner ends within"])
def test_an_episode_above_the_message_limit_reaches_the_learner_whole(
    tmp_path: Path, is_cut: bool
) -> None:
    with noop_server(tmp_path, TASK) as (endpoint, _):
        with life(tmp_path) as learner:
            learner.link().post_orders(ORDERS)
        large = play(endpoint, [(HEIGHT, WIDTH)] * CHUNKS)
        small = play(endpoint, [(64, 64), (48, 64)])
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
